"""A laboratory of policy-gradient methods on small tasks in plain torch: many trainings at once on one device.

    python -m benchmarks.laboratory run --plan gpu --seconds 480 --ledger runs/laboratory/ledger.jsonl
    python -m benchmarks.laboratory summary --ledger runs/laboratory/ledger.jsonl --output runs/laboratory

A *cell* is one training: task, method, batch, steps, learning rate, seed. Cells run side by side in stacks of models of
equal shape; each finished one becomes a line of the ledger, and a run that was killed continues with those that are
missing. Values, draws and evidence come from ``spo_verl.core`` and ``spo_verl.tracker``, the ladder and the model's
sizes from ``spo_verl.small``. A machine needs torch, numpy, pydantic and pyarrow; for the task ``quickstart``
transformers too.
"""

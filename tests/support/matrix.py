"""One line of JSON for every real launch of the tests, in the file that the environment variable SPO_MATRIX names.

    SPO_MATRIX=matrix.jsonl ./test.sh -m system
    python benchmarks/coverage.py --matrix matrix.jsonl

Without the variable nothing is measured or written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

VARIABLE = "SPO_MATRIX"
DIFFERENCE = "training/rollout_probs_diff_max"
_MEGATRON = "actor_rollout_ref.actor.megatron"
_ROLLOUT = "actor_rollout_ref.rollout"
_SPLITS = {
    "tp": f"{_MEGATRON}.tensor_model_parallel_size",
    "pp": f"{_MEGATRON}.pipeline_model_parallel_size",
    "cp": f"{_MEGATRON}.context_parallel_size",
    "ep": f"{_MEGATRON}.expert_model_parallel_size",
    "sp": "actor_rollout_ref.actor.ulysses_sequence_parallel_size",
    "rollout tp": f"{_ROLLOUT}.tensor_model_parallel_size",
}


@dataclass(frozen=True)
class Launch:
    """What one launch was, what it took, and whether it ended as its test wanted.

    Attributes:
        engine: "dp" or "megatron".
        mode: verl's trainer mode, or "estimate" for offline values.
        ranks: training processes.
        layout: how ranks and rollouts are divided; empty where nothing is.
        family: of the model.
        feature: preset or estimator, then what the test says of it.
        peak_gib: most memory that was seen in use at once, shared pages counted once.
        log_prob_difference: largest difference of a token's probability between rollout and training engine; None where
            no step reported one.
        passed: it ended by itself with exit status 0, or its test ended it where it wanted to.
    """

    engine: str
    mode: str
    ranks: int
    layout: str
    family: str
    feature: str
    seconds: float
    peak_gib: float
    log_prob_difference: float | None
    passed: bool


def wanted() -> bool:
    """Whether launches are to be recorded."""
    return bool(os.environ.get(VARIABLE))


def launch(
    command: Sequence[str],
    metrics: Mapping[int, Mapping[str, float]],
    *,
    family: str,
    feature: str,
    seconds: float,
    peak_bytes: int,
    passed: bool,
) -> Launch:
    """A launch, from its command and the metrics of its steps."""
    given = settings(command)
    mode = "estimate" if "estimate" in command else given.get("trainer.v1.trainer_mode", "sync")
    estimator = given.get("algorithm.adv_estimator", "spo")
    method = f"spo {given['spo']}" if "spo" in given else estimator
    differences = [step[DIFFERENCE] for step in metrics.values() if DIFFERENCE in step]
    return Launch(
        engine="megatron" if given.get("model_engine") == "megatron" else "dp",
        mode=mode,
        ranks=_number(given, "trainer.n_gpus_per_node") * _number(given, "trainer.nnodes"),
        layout=layout(given, mode),
        family=family,
        feature=", ".join(filter(None, (method, feature))),
        seconds=round(seconds, 1),
        peak_gib=round(peak_bytes / 2**30, 2),
        log_prob_difference=max(differences, default=None),
        passed=passed,
    )


def settings(command: Sequence[str]) -> dict[str, str]:
    """Key -> value of the overrides of a command; the last one counts, as for hydra."""
    words = [word.lstrip("+").partition("=") for word in command if not word.startswith("-")]
    return {key: value for key, equals, value in words if equals}


def layout(given: Mapping[str, str], mode: str) -> str:
    """How ranks and rollouts are divided, without what is not divided: "tp 2, 2 replicas"."""
    parts = [f"{name} {size}" for name, key in _SPLITS.items() if (size := _number(given, key)) > 1]
    ranks = _number(given, "trainer.n_gpus_per_node")
    nodes = _number(given, "trainer.nnodes")
    rollouts = ranks * nodes
    if mode == "separate_async":
        rollouts = _number(given, f"{_ROLLOUT}.n_gpus_per_node", ranks) * _number(given, f"{_ROLLOUT}.nnodes")
    replicas = rollouts // _number(given, f"{_ROLLOUT}.tensor_model_parallel_size")
    parts += [f"{replicas} replicas"] if replicas > 1 else []
    parts += [f"{nodes} nodes"] if nodes > 1 else []
    return ", ".join(parts)


def record(one: Launch) -> None:
    """Append a launch to the file; several processes may."""
    with open(os.environ[VARIABLE], "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(one)) + "\n")


def _number(given: Mapping[str, str], key: str, default: int = 1) -> int:
    return int(given.get(key, default))

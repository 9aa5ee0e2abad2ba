"""Two training steps of stock verl on all problems of GSM8K, scored by verl's own function for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support import gsm8k
from tests.system.harness import REPOSITORY, Run, launch, main_ppo

BATCH = 32
STEPS = 2
RESPONSE_TOKENS = 32


def train_on_gsm8k(workdir: Path) -> Run:
    """Make data and model, import values from the accuracies beside the problems, train; all of it in ``workdir``."""
    longest = gsm8k.write_run(workdir, response_length=RESPONSE_TOKENS)
    import_values(workdir)
    command = [
        *main_ppo(workdir, "gsm8k"), "+spo=paper", f"spo.initial.values={workdir}/values.parquet",
        f"data.train_batch_size={BATCH}", f"data.max_prompt_length={longest}", "data.filter_overlong_prompts=True",
        f"data.max_response_length={RESPONSE_TOKENS}",
        "actor_rollout_ref.actor.ppo_mini_batch_size=16", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16",
        "actor_rollout_ref.rollout.calculate_log_probs=True",
        f"actor_rollout_ref.rollout.max_model_len={longest + RESPONSE_TOKENS}",
        f"trainer.total_training_steps={STEPS}", f"trainer.save_freq={STEPS}", "trainer.test_freq=-1",
    ]  # fmt: skip
    return launch(workdir, "gsm8k", command, feature="GSM8K")


def import_values(workdir: Path) -> None:
    """`spo-verl values import` of the accuracies that ten of eleven rows have; what it printed lies in a file."""
    command = [
        sys.executable, "-m", "spo_verl.cli", "values", "import",
        "--column", "extra_info.accuracy", "--trials", str(gsm8k.TRIALS),
        "--data", f"{workdir}/train.parquet", "-o", f"{workdir}/values.parquet", "--policy", "made up",
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    with (workdir / "import.log").open("w") as log:
        subprocess.run(command, env=env, stdout=log, stderr=subprocess.STDOUT, check=True)

"""With any other estimator verl is the same with and without the plugin: objects, configuration, advantages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).parents[1] / "support" / "verl_fingerprint.py"


def fingerprint(workdir: Path, estimator: str, plugins: str) -> dict:
    env = {key: value for key, value in os.environ.items() if key != "VERL_PLATFORM"}
    env |= {"VERL_USE_EXTERNAL_PLUGINS": plugins, "PYTHONWARNINGS": "ignore"}
    run = subprocess.run(
        [sys.executable, str(SCRIPT), str(workdir), estimator],
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    [line] = [line for line in run.stdout.splitlines() if line.startswith("FINGERPRINT ")] or [run.stderr[-3000:]]
    return json.loads(line.removeprefix("FINGERPRINT "))


@pytest.mark.parametrize("estimator", ["grpo", "gae"])
def test_other_estimators_are_untouched(tmp_path, estimator):
    without = fingerprint(tmp_path, estimator, plugins="none")
    with_plugin = fingerprint(tmp_path, estimator, plugins="auto")
    assert "spo" not in without["estimators"]
    assert with_plugin["estimators"].pop("spo") == "spo_verl.training.estimator.spo_advantage"
    assert with_plugin == without
    assert without["trainer"] == "verl.trainer.ppo.v1.trainer_sync.PPOTrainerSync"
    assert without["loader"] == "torchdata.stateful_dataloader.stateful_dataloader.StatefulDataLoader"

"""What is shown while verl runs."""

from __future__ import annotations

import json
from pathlib import Path

from spo_verl.launching.progress import Progress


def test_progress_shows_phases_once_and_each_step(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "metrics.jsonl"
    progress = Progress(path, steps=2, say=said.append)
    progress("(x) Started a local Ray inst")
    assert said == []
    progress("ance.\n")  # the marker may arrive in pieces
    progress("more\n")
    assert len(said) == 1
    levels = {f"val-core/ladder{level}/acc/mean@1": 0.25 for level in range(1, 9)}
    first = json.dumps({"step": 0, "data": levels})
    path.write_text(first + "\n" + '{"step": 1')
    progress("step:0\n")
    assert "step    0/2" in said[-1]
    assert "held-out accuracy 0.250" in said[-1]
    step = {"step": 1, "data": {"critic/score/mean": 0.5, "timing_s/step": 4.2, "spo/value/mean": 0.4}}
    path.write_text(first + "\n" + json.dumps(step) + "\n")
    progress("step:1\n")
    assert "reward 0.500   value 0.400" in said[-1]
    assert "4.2 s" in said[-1]
    assert len(said) == 3
    progress.update()
    assert len(said) == 3


def test_progress_of_offline_values_and_then_a_training(tmp_path: Path) -> None:
    said: list[str] = []
    progress = Progress(tmp_path / "metrics.jsonl", steps=2, values_first=True, say=said.append)
    for text in (
        "checkpoint engine manager initialized\n",
        "Offline values:   0%|          | 0/1024 [00:00<?, ?prompt/s]\r",
        "Offline values:  25%|##5       | 256/10",
        "24 [00:30<01:30,  8.5prompt/s]\r",
        "Offline values:  25%|##5       | 256/1024 [00:31<01:30,  8.5prompt/s]\r",
        "Offline values:  50%|#####     | 512/1024 [01:00<01:00,  8.5prompt/s]\r",
        "Offline values: 100%|###| 1024/1024 [02:00<00:00,  8.5prompt/s]\nspo: wrote /values.parquet: 1024 prompts\n",
        "Initial validation metrics\n",
    ):
        progress(text)
    assert [line.split("s  ")[1] for line in said] == [
        "vLLM ready; sampling offline values",
        "256 of 1024 prompts",
        "512 of 1024 prompts",
        "1024 of 1024 prompts",
        "offline values ready; answering the held-out prompts before training",
        "training",
    ]

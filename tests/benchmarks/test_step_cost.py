"""What two runs spent until an accuracy, by hand."""

import json

import pytest

from benchmarks import step_cost

CURVE = [{"step": 0, "held_out": 0.30}, {"step": 2, "held_out": 0.34}, {"step": 4, "held_out": 0.44}]


def test_the_step_of_an_accuracy_lies_between_checkpoints():
    assert step_cost.step_at(CURVE, 0.39) == pytest.approx(3.0)
    assert step_cost.step_at(CURVE, 0.34) == pytest.approx(2.0)
    assert step_cost.step_at(CURVE, 0.2) == 0
    assert step_cost.step_at(CURVE, 0.5) is None


def run(folder, curve, seconds, offline=0):
    folder.mkdir()
    spent = {"offline values": {"trajectories": offline}} if offline else {}
    (folder / "result.json").write_text(json.dumps({"curve": curve, "spent": spent, "settings": {"trajectories": 64}}))
    steps = [{"timing_s/step": one, "perf/total_num_tokens": 100 * one} for one in seconds]
    lines = [json.dumps({"step": number, "data": data}) + "\n" for number, data in enumerate(steps, 1)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def test_what_is_spent_until_the_accuracy_of_the_other_run(tmp_path):
    # GRPO ends at 0.34, which SPO has after 1 + (0.34 - 0.32) / 0.04 * 2 = 2 steps: of 1 and 2 seconds.
    spo_curve = [{"step": 0, "held_out": 0.30}, {"step": 1, "held_out": 0.32}, {"step": 3, "held_out": 0.36}]
    spo = run(tmp_path / "spo", spo_curve, [1.0, 2.0, 9.0], offline=512)
    grpo = run(tmp_path / "grpo", CURVE[:2], [3.0, 4.0, 5.0])
    rows = step_cost.to_target({"SPO": spo, "GRPO": grpo})
    assert rows[0].startswith("| until a held-out accuracy of 0.3400 ")
    assert rows[2] == "| SPO | 2.0 | 640 | 300 | 3.0 |"
    assert rows[3] == "| GRPO | 2.0 | 128 | 700 | 7.0 |"
    assert step_cost.to_target({"GRPO": grpo, "SPO": spo})[2] == "| GRPO | not reached | | | |"
    # Half of the third step counts as half of it.
    assert step_cost.spent_at(2.5, step_cost.steps_of(spo), "timing_s/step") == pytest.approx(7.5)

"""benchmarks/reward_curves.py, against curves worked out by hand."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import reward_curves
from benchmarks.reward_curves import compared, measures, read_curve
from tests.benchmarks.test_group_signal import dump


def log(file, rewards, key="critic/score/mean"):
    """A file as verl's logger writes it, with a validation before training."""
    lines = [{"step": 0, "data": {"val-core/aime_2025/acc/mean@16": 0.1}}]
    lines += [{"step": step, "data": {key: reward, "perf/mfu": 0.3}} for step, reward in enumerate(rewards, 1)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_a_curve_by_hand():
    # Trapezia of 0.1, 0.3, 0.5, 0.7, 0.8: 2.4 over five intervals; last five: 3.2 / 5.
    found = measures([0.0, 0.2, 0.4, 0.6, 0.8, 0.8 + 0.4])
    assert found == pytest.approx({"area": 0.52, "mean": 3.2 / 6, "end": 0.64, "composite": 0.58})


def test_one_step():
    assert measures([0.3]) == pytest.approx({"area": 0.3, "mean": 0.3, "end": 0.3, "composite": 0.3})


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
def test_the_area_is_the_integral_of_the_polygon_over_its_length(rewards):
    integral = float(np.sum(np.diff(np.arange(len(rewards))) * (np.array(rewards[1:]) + rewards[:-1]) / 2))
    found = measures(rewards)
    assert found["area"] == pytest.approx(integral / (len(rewards) - 1), abs=1e-12)
    assert found["end"] == pytest.approx(np.mean(rewards[-5:]), abs=1e-12)
    # The two areas of the paper differ in the weight of the end points only.
    ends = (rewards[0] + rewards[-1]) / 2
    assert found["mean"] * len(rewards) - ends == pytest.approx(found["area"] * (len(rewards) - 1), abs=1e-9)


def test_c10_of_ten_steps_by_hand():
    ramp = [step / 10 for step in range(1, 11)]  # area (0.1 + 1.0) / 2, last five 0.8
    assert measures(ramp)["composite"] == pytest.approx((0.55 + 0.8) / 2)


def test_differences_are_paired_and_in_points():
    curves = {"spo": [[0.1] * 6, [0.5] * 6], "plus": [[0.2] * 6, [0.8] * 6]}
    result = compared(curves)
    assert result["variants"]["plus"]["area"] == pytest.approx(0.5)
    assert list(result["differences"]) == ["plus - spo"]
    # 10 and 30 points: mean 20, sample standard deviation sqrt(200).
    assert result["differences"]["plus - spo"]["area"] == pytest.approx({"mean": 20.0, "sd": 200**0.5})


def test_three_variants_give_three_differences_as_in_table_2():
    curves = {"spo": [[0.1]], "trajectory": [[0.2]], "spo_plus_plus": [[0.4]]}
    found = {name: row["composite"] for name, row in compared(curves)["differences"].items()}
    assert {name: one["mean"] for name, one in found.items()} == pytest.approx(
        {"trajectory - spo": 10, "spo_plus_plus - spo": 30, "spo_plus_plus - trajectory": 20}
    )
    assert all(one["sd"] is None for one in found.values())


def test_a_pair_is_cut_to_its_common_steps():
    result = compared({"one": [[0.0, 1.0, 1.0], [0.5] * 9], "other": [[1.0, 1.0], [0.5] * 7]})
    assert result["steps"] == [2, 7]
    assert result["variants"]["one"]["area"] == pytest.approx(0.5)


def test_only_the_first_steps():
    ramp = [step / 10 for step in range(1, 21)]
    assert compared({"one": [ramp]}, steps=10)["variants"]["one"]["composite"] == pytest.approx(0.675)


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(SystemExit, match="equally many replicates"):
        compared({"one": [[0.1], [0.1]], "other": [[0.1]]})
    with pytest.raises(SystemExit, match="replicate 2 has 3 of 10 steps"):
        compared({"one": [[0.1] * 10, [0.1] * 3]}, steps=10)


def test_a_folder_and_a_file_of_the_same_run_agree(tmp_path):
    for step, reward in ((1, 0), (2, 1), (10, 1)):
        dump(tmp_path, step, {"a": [reward, 1], "b": [0, 1]})
    with pytest.raises(SystemExit, match=r"step 3 is missing \(7 in all\)"):
        read_curve(tmp_path)
    (tmp_path / "10.jsonl").unlink()
    assert read_curve(tmp_path) == [0.5, 0.75] == read_curve(log(tmp_path / "run.jsonl", [0.5, 0.75]))


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="no <step>"):
        read_curve(tmp_path)
    with pytest.raises(SystemExit, match="no step with critic/score/mean"):
        read_curve(log(tmp_path / "other.jsonl", [0.1], key="other"))
    with pytest.raises(SystemExit, match="there is no file"):
        read_curve(tmp_path / "absent.jsonl")
    (tmp_path / "list.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(SystemExit, match="no file of verl's logger"):
        read_curve(tmp_path / "list.jsonl")


def test_the_command(tmp_path, capsys):
    one, other = log(tmp_path / "1.jsonl", [0.1] * 10), log(tmp_path / "2.jsonl", [0.3] * 10)
    written = tmp_path / "out.json"
    reward_curves.main([f"spo={one},{one}", f"plus={other},{other}", "--steps", "10", "--json", str(written)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 replicates of 10, 10 steps"
    assert lines[-1].split() == ["plus", "-", "spo", *["+20.00", "+-", "0.00"] * 4]
    assert json.loads(written.read_text())["variants"]["spo"]["composite"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    "words", [["spo"], ["spo="], ["=a"], ["spo=a,"], ["spo=x", "spo=y"], ["spo=x", "--steps", "0"]]
)
def test_a_command_of_another_form_is_refused(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in "xy":
        log(tmp_path / name, [0.1])
    with pytest.raises(SystemExit) as refused:
        reward_curves.main(words)
    assert refused.value.code == 2
    assert "error" in capsys.readouterr().err

"""Two runs or checkpoints compared, against plain loops."""

import numpy as np
import pytest

from spo_verl.history.comparing import STRETCHES, compare, differing, flattened
from spo_verl.history.places import find
from spo_verl.history.states import hex_of, states_of


def sides(*folders):
    return [(place, states_of(place)) for place in map(find, folders)]


def test_values_are_matched_by_key_whatever_the_order(sync_run, async_run):
    first, second = sides(sync_run.folder, async_run.folder)
    value_of = dict(zip(hex_of(second[1].key_P), second[1].value_P.tolist(), strict=True))
    keys = hex_of(first[1].key_P)
    differences = {key: value_of[key] - value for key, value in zip(keys, first[1].value_P.tolist(), strict=True)}
    found = compare(first, second, 5)
    assert found["prompts"] == {"common": 80, "only_first": 0, "only_second": 10}
    largest = sorted(differences.items(), key=lambda one: -abs(one[1]))[:5]
    assert [(one["key"], one["difference"]) for one in found["largest"]] == largest
    for one in found["largest"]:
        assert one["values"] == [first[1].value_P[keys.index(one["key"])], value_of[one["key"]]]
    numbers = np.array(list(differences.values()))
    assert found["values"]["mean_difference"] == pytest.approx(numbers.mean())
    assert found["values"]["mean_distance"] == pytest.approx(np.abs(numbers).mean())
    paired = np.corrcoef(first[1].value_P, [value_of[key] for key in keys])[0, 1]
    assert found["values"]["correlation"] == pytest.approx(paired)
    assert found["coverage"] == [(states.draws_P > 0).mean() for _, states in (first, second)]
    assert found["settings"]["trainer.v1.trainer_mode"] == ["sync", "separate_async"]
    assert "spo.forgetting.mode" not in found["settings"]
    back = compare(second, first, 5)
    assert back["values"]["mean_difference"] == pytest.approx(-numbers.mean())
    assert back["prompts"] == {"common": 80, "only_first": 10, "only_second": 0}


def test_outcomes_over_steps_are_weighted_by_their_number(sync_run, async_run):
    runs = (sync_run, async_run)
    rows = compare(*sides(*(made.folder for made in runs)), 0)["outcomes"]
    assert [row["from"] for row in rows] == list(range(1, 8))
    for row in rows:
        for side, made in enumerate(runs):
            inside = [one for one in made.rows if one["step"] == row["from"] and one["reward"] is not None]
            assert row["outcomes"][side] == len(inside)
            rewards = [one["reward"] for one in inside]
            assert row["reward"][side] == (pytest.approx(np.mean(rewards)) if rewards else None)
    assert rows[-1]["reward"][0] is None  # the first run had 6 steps


def test_long_runs_are_compared_in_stretches(tmp_path):
    from tests.support.records import made_run

    made = made_run(tmp_path / "run", prompts=30, steps=23, batch=5, checkpoint_every=23, dumps=False)
    rows = compare(*sides(made.folder, made.folder / "global_step_23"), 3)["outcomes"]
    assert len(rows) == STRETCHES
    assert (rows[0]["from"], rows[-1]["to"]) == (1, 23)
    for row in rows:
        rewards = [one["reward"] for one in made.rows if row["from"] <= one["step"] <= row["to"]]
        rewards = [reward for reward in rewards if reward is not None]
        assert row["reward"][0] == row["reward"][1] == pytest.approx(np.mean(rewards))


def test_a_checkpoint_against_its_own_run(sync_run):
    found = compare(*sides(sync_run.folder / "global_step_3", sync_run.folder), 3)
    assert found["settings"] == {}
    assert found["steps"] == [3, 6]
    assert [row["reward"][0] is None for row in found["outcomes"]] == [False] * 3 + [True] * 3
    same = compare(*sides(sync_run.folder, sync_run.folder), 3)
    assert same["largest"] == []
    assert same["values"]["correlation"] == pytest.approx(1)
    assert same["values"]["mean_distance"] == 0


def test_without_a_record_the_trackers_settings_are_compared_and_outcomes_are_unknown(sync_run, tmp_path):
    import shutil

    shutil.copytree(sync_run.folder / "global_step_6" / "spo", tmp_path / "kept")
    first, second = sides(tmp_path / "kept", tmp_path / "kept")
    second[1].settings["seed"] = 7
    found = compare(first, second, 0)
    assert found["settings"] == {"tracker.seed": [0, 7]}
    assert found["outcomes"] is None


def test_settings_by_dotted_name():
    nested = {"spo": {"forgetting": {"mode": "kl"}, "empty": {}}, "data.train_files": ["a"]}
    flat = flattened(nested)
    assert flat == {"spo.forgetting.mode": "kl", "spo.empty": {}, "data.train_files": ["a"]}
    assert differing(flat, {"spo.forgetting.mode": "kl", "new": 0}) == {
        "data.train_files": [["a"], None],
        "new": [None, 0],
        "spo.empty": [{}, None],
    }

"""The parts of an estimation: what they cost, and how an interrupted one comes together."""

import numpy as np
import pytest

from spo_verl.data.values import OfflineValues, provenance
from spo_verl.errors import SpoValuesError
from spo_verl.training.estimate import SPENT, Parts, spent_on
from spo_verl.training.sessions import read_sessions

SETTINGS = {"policy": "m", "trials": 2}


def tag(prompt_len, response_len, **more):
    return {"prompt_len": prompt_len, "response_len": response_len, **more}


def part(first, spent):
    key_N = np.frombuffer(bytes(range(16 * first, 16 * first + 32)), dtype="V16")
    source = provenance("estimate", policy="m", date="2026-01-01", trials=2, **dict(zip(SPENT, spent, strict=True)))
    return OfflineValues(key_N, np.array([1.0, 0.0]), np.array([2, 2]), (source,))


def test_the_cost_of_a_batch_counts_every_output_and_no_padding():
    # rollout a/0 has two outputs, a/1 and b/0 have one
    keys = ["a_0_0", "a_0_1", "pad_0_0", "a_1_0", "b_0_0"]
    tags = [tag(10, 3), tag(14, 5), tag(99, 99, is_padding=True), tag(10, 7), tag(20, 11)]
    spent = spent_on(read_sessions(keys, tags), tags)
    assert spent == {"responses": 3, "response_tokens": 26, "prompt_tokens": 54}
    assert all(type(count) is int for count in spent.values())


def test_a_resumed_estimation_adds_up_the_costs_of_all_its_parts(tmp_path):
    output = tmp_path / "values.parquet"
    first = Parts(output, SETTINGS, prompts=6, chunk=2)
    part(0, (4, 100, 40)).write(first.file(0))
    again = Parts(output, SETTINGS, prompts=6, chunk=2)
    assert [number for number, _ in again.missing()] == [1, 2]
    # two parts that cost the same are still two parts
    part(2, (4, 100, 40)).write(again.file(1))
    part(4, (3, 70, 30)).write(again.file(2))
    again.join()
    values = OfflineValues.read(output)
    assert not again.folder.exists()
    [source] = values.source
    assert {name: source[name] for name in SPENT} == {"responses": 11, "response_tokens": 270, "prompt_tokens": 110}
    assert (source["kind"], source["policy"], source["trials"]) == ("estimate", "m", 2)
    assert (len(values), values.trials_N.tolist()) == (6, [2] * 6)


def test_one_part_keeps_its_costs(tmp_path):
    parts = Parts(tmp_path / "values.parquet", SETTINGS, prompts=2, chunk=256)
    part(0, (4, 100, 40)).write(parts.file(0))
    assert parts.join().source[0]["response_tokens"] == 100


def test_other_settings_do_not_go_on(tmp_path):
    Parts(tmp_path / "values.parquet", SETTINGS, prompts=2, chunk=1)
    with pytest.raises(SpoValuesError, match="trials was 2, is 3"):
        Parts(tmp_path / "values.parquet", {**SETTINGS, "trials": 3}, prompts=2, chunk=1)

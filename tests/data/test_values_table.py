"""The table of offline values, its file, and merging."""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_verl.data.values import FORMAT, OfflineValues, merge, provenance
from spo_verl.errors import SpoValuesError
from tests.data.rows import counts, keys

SOURCE = provenance("estimate", policy="model-a", sampling={"temperature": 1.0}, date="2025-01-01T00:00:00+00:00")


def values(numbers, successes, trials, source=SOURCE):
    return OfflineValues(keys(numbers), np.array(successes, float), np.array(trials, np.int64), (source,))


@st.composite
def tables(draw, run=0):
    numbers = draw(st.lists(st.integers(0, 12), unique=True, max_size=8))
    trials = [draw(st.integers(0, 9)) for _ in numbers]
    # Eighths add up without rounding.
    successes = [draw(st.integers(0, 8 * count)) / 8 for count in trials]
    return values(numbers, successes, trials, provenance("estimate", policy="model-a", run=run))


# Files are synced, which takes as long as the disk takes.
@settings(deadline=None)
@given(tables())
def test_a_file_gives_back_what_was_written(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("values") / "values.parquet"
    table.write(path)
    again = OfflineValues.read(path)
    assert counts(again) == counts(table)
    assert again.key_N.tobytes() == table.key_N.tobytes()
    assert again.source == table.source


def test_the_columns_are_those_that_the_docstring_names(tmp_path):
    path = tmp_path / "values.parquet"
    values([3, 1], [2.5, 0.0], [8, 4]).write(path)
    found = pq.read_table(path)
    assert found.schema.names == ["key", "successes", "trials"]
    assert found.schema.types == [pa.binary(16), pa.float64(), pa.int64()]
    assert found.to_pylist() == [
        {"key": keys([3])[0].tobytes(), "successes": 2.5, "trials": 8},
        {"key": keys([1])[0].tobytes(), "successes": 0.0, "trials": 4},
    ]
    metadata = json.loads(found.schema.metadata[FORMAT.encode()])
    assert {name: metadata[name] for name in ("format", "format_version", "identity_version", "source")} == {
        "format": "spo_verl.values",
        "format_version": 1,
        "identity_version": 1,
        "source": [SOURCE],
    }


def test_changed_bits_are_refused_or_harmless(tmp_path):
    path = tmp_path / "values.parquet"
    table = values(range(20), np.linspace(0, 8, 20), [8] * 20)
    table.write(path)
    content = path.read_bytes()
    refused = 0
    for position in range(0, len(content), 3):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
        try:
            found = OfflineValues.read(path)
        except SpoValuesError:
            refused += 1
        else:
            assert (counts(found), found.source) == (counts(table), table.source), position
    assert refused > len(content) / 6


def test_a_truncated_file_is_refused_by_name(tmp_path):
    path = tmp_path / "values.parquet"
    values([1], [1], [2]).write(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SpoValuesError, match=r"values\.parquet cannot be read as Parquet"):
        OfflineValues.read(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "values.parquet"
    values([1], [1], [2]).write(path)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(SpoValuesError, match="cannot be written .disk full"):
        values([2], [1], [2]).write(path)
    assert [file.name for file in tmp_path.iterdir()] == ["values.parquet"]
    assert counts(OfflineValues.read(path)) == counts(values([1], [1], [2]))


def test_writing_makes_folders_and_refuses_to_replace_one(tmp_path):
    values([1], [1], [2]).write(tmp_path / "a" / "b" / "values.parquet")
    with pytest.raises(SpoValuesError, match="is a folder"):
        values([1], [1], [2]).write(tmp_path / "a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2, "spo_verl_version": "9.9"}, "format 2, .* install spo_verl 9.9 or newer"),
        ({"colour": "red"}, "install spo_verl"),
        ({"identity_version": 2}, "by version 2 of the identity"),
        ({"source": [dict(SOURCE, policy="model-b")]}, "not what was written"),
    ],
)
def test_other_versions_and_altered_metadata_are_refused(tmp_path, changes, message):
    path = tmp_path / "values.parquet"
    values([1], [1], [2]).write(path)
    found = pq.read_table(path)
    metadata = json.loads(found.schema.metadata[FORMAT.encode()]) | changes
    pq.write_table(found.replace_schema_metadata({FORMAT: json.dumps(metadata)}), path)
    with pytest.raises(SpoValuesError, match=message):
        OfflineValues.read(path)


def test_another_parquet_file_and_no_file_are_told_apart(tmp_path):
    pq.write_table(pa.table({"prompt": ["1 + 1"]}), tmp_path / "train.parquet")
    with pytest.raises(SpoValuesError, match=r"not a file of offline values .*\['prompt'\]"):
        OfflineValues.read(tmp_path / "train.parquet")
    with pytest.raises(SpoValuesError, match="there is no file"):
        OfflineValues.read(tmp_path / "nothing.parquet")


@pytest.mark.parametrize(
    ("successes", "trials", "message"),
    [
        ([1.0, 3.0], [2, 2], r"entry 1 has 3.0 successes in 2 trials \(1 such"),
        ([-0.5, 0.0], [2, 2], "entry 0 has -0.5"),
        ([np.nan, 0.0], [2, 2], "entry 0 has nan"),
        ([0.0, 0.0], [2, -1], "entry 1 has 0.0 successes in -1"),
        ([0.0], [2, 2], "2 keys, 1 successes and 2 trials"),
        ([0.0, 0.0], [2.0, 2.0], "trials_N has type float64"),
    ],
)
def test_impossible_counts_are_refused(successes, trials, message):
    with pytest.raises(SpoValuesError, match=message):
        OfflineValues(keys(2), np.array(successes), np.array(trials), (SOURCE,))


def test_equal_keys_and_incomplete_provenances_are_refused():
    with pytest.raises(SpoValuesError, match="more than once"):
        values([4, 4], [1, 1], [2, 2])
    with pytest.raises(SpoValuesError, match="lacks sampling, date"):
        values([1], [1], [2], {"kind": "x", "policy": None})
    with pytest.raises(SpoValuesError, match="JSON cannot"):
        values([1], [1], [2], provenance("x", when=np.float32(1)))


def test_the_columns_are_copies_that_cannot_be_written_to():
    successes = np.array([1.0])
    table = OfflineValues(keys(1), successes, np.array([2]), (SOURCE,))
    successes[0] = 99
    assert table.successes_N.tolist() == [1.0]
    with pytest.raises(ValueError, match="read-only"):
        table.successes_N[0] = 0


def test_the_description_of_five_prompts():
    # Rates: 0/8 = 0, 2/8 = 0.25, 8/8 = 1, 3/4 = 0.75; the fifth has no trial. Mean (0 + 0.25 + 1 + 0.75) / 4 = 0.5.
    described = values(range(5), [0, 2, 8, 3, 0], [8, 8, 8, 4, 0]).describe()
    assert (described["prompts"], described["prompts_without_trials"]) == (5, 1)
    assert described["trials"] == 28
    assert described["trials_per_prompt"] == {"min": 4, "median": 8.0, "max": 8}
    assert described["value_mean"] == 0.5
    assert (described["never_solved"], described["always_solved"]) == (1, 1)
    assert described["value_histogram"] == [1, 0, 1, 0, 0, 0, 0, 1, 0, 1]
    assert described["policies"] == ["model-a"]
    json.dumps(described, allow_nan=False)


def test_an_empty_table_has_a_description_too():
    assert values([], [], np.empty(0, np.int64)).describe()["value_mean"] is None


def test_merging_adds_the_counts_of_each_prompt():
    # Prompt 2 stands in both: 1 + 0.5 successes in 2 + 4 trials.
    later = provenance("estimate", policy="model-a", sampling={"temperature": 0.5}, date="2025-02-02")
    merged = merge(values([1, 2], [1, 1], [2, 2]), values([3, 2], [0, 0.5], [4, 4], later))
    assert merged.key_N.tobytes() == keys([1, 2, 3]).tobytes()
    assert merged.successes_N.tolist() == [1, 1.5, 0]
    assert merged.trials_N.tolist() == [2, 6, 4]
    assert merged.source == (SOURCE, later)


def test_shards_of_one_estimate_share_one_provenance():
    assert merge(values([1], [1], [2]), values([2], [1], [2])).source == (SOURCE,)


@settings(deadline=None)
@given(tables(run=1), tables(run=2), tables(run=3))
def test_merging_in_any_order_or_grouping_gives_the_same_counts(first, second, third):
    expected = counts(merge(first, second, third))
    assert counts(merge(third, first, second)) == expected
    assert counts(merge(merge(first, second), third)) == expected
    assert sum(trials for _, trials in expected.values()) == sum(
        int(table.trials_N.sum()) for table in (first, second, third)
    )


def test_tables_without_a_trial_may_repeat():
    merged = merge(values([1], [0], [0]), values([1], [0], [0]), values([2], [1], [2]))
    assert merged.trials_N.tolist() == [0, 2]


@pytest.mark.parametrize(("other", "named"), [("model-b", "'model-a', 'model-b'"), (None, "'model-a', an unknown one")])
def test_mixed_policies_are_refused_unless_allowed(other, named):
    tables = values([1], [1], [2]), values([1], [0], [2], provenance("estimate", policy=other))
    with pytest.raises(SpoValuesError, match=rf"2 policies \({named}\)"):
        merge(*tables)
    merged = merge(*tables, mixed_policies=True)
    assert merged.trials_N.tolist() == [4]
    assert merged.policies == ("model-a", other)


def test_the_same_table_twice_is_refused_and_an_equal_outcome_of_another_run_is_not():
    with pytest.raises(SpoValuesError, match="tables 1 and 3 are the same"):
        merge(values([1], [1], [2]), values([2], [1], [2]), values([1], [1], [2]))
    second_run = provenance("estimate", policy="model-a", date="2025-02-02")
    assert merge(values([1], [1], [2]), values([1], [1], [2], second_run)).trials_N.tolist() == [4]


def test_merging_nothing_is_refused():
    with pytest.raises(SpoValuesError, match="nothing to merge"):
        merge()


def test_importing_it_imports_neither_a_trainer_nor_a_cluster():
    heavy = {"verl", "ray", "datasets", "transfer_queue", "transformers", "pandas"}
    code = f"import sys, spo_verl.data.values; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"

"""Reading the reference recipe's offline_values.json."""

import json

import pytest

from spo_verl.config import RewardConfig
from spo_verl.data import dataset_keys
from spo_verl.data.values import from_reference_json
from spo_verl.errors import SpoConfigError, SpoRewardError, SpoValuesError
from tests.data.rows import by_slot, row, table


@pytest.fixture
def write(tmp_path):
    def write_file(content):
        path = tmp_path / "offline_values.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write_file


def test_scores_above_zero_are_successes_of_the_prompt_with_that_text(write):
    dataset = table(row("1 + 1", "2"), row("  2 + 2\n", "4"), row("3 + 3", "6"))
    path = write({"2 + 2": [1.0, -1.0, 0.0, 0.3], "1 + 1": [1, True, 1]})
    values, report = from_reference_json(path, dataset, policy="model-a", sampling={"n": 8})
    assert by_slot(values, dataset_keys(dataset)) == [(3.0, 3), (2.0, 4), None]
    assert (report.prompts, report.matched, report.entries) == (3, 2, 2)
    assert report.unmatched_row_U.tolist() == [2]
    assert values.source[0] | {"date": None} == {
        "kind": "reference_json",
        "policy": "model-a",
        "sampling": {"n": 8},
        "date": None,
        "file": "offline_values.json",
    }


def test_with_a_declared_range_scores_are_mapped(write):
    # Range [-1, 1]: -1 -> 0, 0 -> 0.5, 0.5 -> 0.75, 1 -> 1
    dataset = table(row("1 + 1", "2"))
    path = write({"1 + 1": [-1, 0, 0.5, 1]})
    values, _ = from_reference_json(path, dataset, reward=RewardConfig(low=-1, high=1))
    assert by_slot(values, dataset_keys(dataset)) == [(2.25, 4)]
    with pytest.raises(
        SpoRewardError, match=r"'1 \+ 1' has a score = -1, .* range \[spo.reward.low=0.0, spo.reward.high=1.0\]"
    ):
        from_reference_json(path, dataset, reward=RewardConfig())


def test_prompts_with_one_text_are_all_given_its_scores_and_reported(write):
    dataset = table(row("1 + 1", "2"), row("1 + 1", "3"), row("1 + 1", "2"), row("2", "2"))
    values, report = from_reference_json(write({"1 + 1": [1, 0], "2": [1]}), dataset)
    assert by_slot(values, dataset_keys(dataset)) == [(1.0, 2), (1.0, 2), (1.0, 1)]
    assert report.shared_entries == ("1 + 1",)
    assert report.complete
    assert "1 prompt text given to several prompts: '1 + 1'" in str(report)


def test_texts_of_no_prompt_are_all_reported(write):
    dataset = table(row("1 + 1", "2"), row("5", "5"))
    content = {"1 + 1": [1]} | {f"{n} * {n}": [1] for n in range(9)}
    _, report = from_reference_json(write(content), dataset)
    assert report.unmatched_entries == tuple(f"{n} * {n}" for n in range(9))
    assert report.as_json()["unmatched_rows"] == [1]
    assert "9 prompt texts of no prompt: '0 * 0'; '1 * 1'; '2 * 2'" in str(report)
    assert "prompts without a value: 1, e.g. dataset rows 1" in str(report)


def test_behind_a_system_message_the_last_user_message_is_found(write):
    system = {"role": "system", "content": "Answer."}
    dataset = table(row([system, {"role": "user", "content": "1  + 1"}], "2"), row("Answer.", "0"))
    values, report = from_reference_json(write({"1 +\n1": [1], "Answer.": [0]}), dataset)
    # "Answer." is the first message of both; the recipe would look both up under it.
    assert by_slot(values, dataset_keys(dataset)) == [(1.0, 2), (0.0, 1)]
    assert report.shared_entries == ("Answer.",)


def test_contents_in_parts_are_read_as_their_texts(write):
    parts = [{"type": "image", "image": "cats.png", "text": None}, {"type": "text", "text": "How many?", "image": None}]
    dataset = table(row([{"role": "user", "content": parts}], "2"))
    values, _ = from_reference_json(write({"<image>How many?": [1, 0]}), dataset)
    assert by_slot(values, dataset_keys(dataset)) == [(1.0, 2)]


def test_datasets_without_a_table_are_read_item_by_item(write):
    items = [row("1 + 1", "2"), row("2 + 2", "4")]
    values, _ = from_reference_json(write({"2 + 2": [1, 0]}), items)
    assert by_slot(values, dataset_keys(items)) == [None, (1.0, 2)]


def test_empty_lists_count_as_no_trial_and_are_noted(write):
    dataset = table(row("1", "1"), row("2", "2"))
    values, report = from_reference_json(write({"1": [], "2": [0]}), dataset)
    assert by_slot(values, dataset_keys(dataset)) == [None, (0.0, 1)]
    assert "1 texts have an empty list" in str(report)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("{", SpoValuesError, "not readable JSON"),
        ("[1]", SpoValuesError, "must hold one JSON object"),
        ({"1": 1.0}, SpoValuesError, "must hold one JSON object"),
        ({"1": [float("nan")]}, SpoRewardError, "a score = nan, outside"),
        ({"1": ["yes"]}, SpoRewardError, "a score = 'yes', a str"),
        ({"7": [1]}, SpoValuesError, "(?s)nothing matched.*'7'.*data.prompt_key"),
    ],
)
def test_files_that_make_no_sense_are_refused(write, content, error, message):
    with pytest.raises(error, match=message):
        from_reference_json(write(content), table(row("1", "1")))


def test_a_missing_file_and_keys_of_another_dataset_are_refused(write, tmp_path):
    dataset = table(row("1", "1"))
    with pytest.raises(SpoValuesError, match="there is no file"):
        from_reference_json(tmp_path / "no.json", dataset)
    other = dataset_keys(table(row("1", "1"), row("2", "2")))
    with pytest.raises(SpoConfigError, match="keys are of 2 rows and the dataset has 1"):
        from_reference_json(write({"1": [1]}), dataset, keys=other)


@pytest.mark.parametrize("rows_per_batch", [1, 2, 4096])
def test_batches_and_duplicates_do_not_shift_prompts(write, monkeypatch, rows_per_batch):
    monkeypatch.setattr("spo_verl.data.columns._ROWS_PER_BATCH", rows_per_batch)
    names = ["a", "b", "a", "c", "b", "d", "d", "e"]
    dataset = table(*(row(name, name) for name in names))
    content = {name: [1] * number + [0] for number, name in enumerate("abcde")}
    values, _ = from_reference_json(write(content), dataset)
    assert by_slot(values, dataset_keys(dataset)) == [(float(n), n + 1) for n in range(5)]

"""Reading accuracies that stand in the dataset."""

import numpy as np
import pytest

from spo_verl.data import dataset_keys
from spo_verl.data.values import from_accuracy_column
from spo_verl.errors import SpoConfigError, SpoRewardError
from tests.data.rows import by_slot, row, table


def with_accuracy(*accuracies, **more):
    return table(*(row(str(n), "1", difficulty=accuracy, **more) for n, accuracy in enumerate(accuracies)))


def test_polaris_fractions_bring_their_trials():
    dataset = with_accuracy("0/8", "5/8", None, " 3 / 4 ", "", "7/8")
    values, report = from_accuracy_column(dataset, "difficulty", policy="model-a")
    assert by_slot(values, dataset_keys(dataset)) == [(0.0, 8), (5.0, 8), None, (3.0, 4), None, (7.0, 8)]
    assert (report.prompts, report.matched, report.entries) == (6, 4, 4)
    assert report.unmatched_row_U.tolist() == [2, 4]
    assert values.source[0]["column"] == "difficulty"
    assert values.policies == ("model-a",)


def test_numbers_are_multiplied_by_the_trials():
    # 0.625 * 8 = 5; 0.3 * 8 = 2.4, a fraction of a success
    dataset = with_accuracy(0.625, float("nan"), 1.0, 0.3)
    values, _ = from_accuracy_column(dataset, "difficulty", 8)
    assert by_slot(values, dataset_keys(dataset)) == [(5.0, 8), None, (8.0, 8), (pytest.approx(2.4), 8)]


def test_numbers_as_text_and_other_kinds_of_items():
    items = [row("a", accuracy="0.5"), row("b", accuracy=np.float32(1)), row("c", accuracy=True), row("d")]
    values, _ = from_accuracy_column(items, "accuracy", 4)
    assert by_slot(values, dataset_keys(items)) == [(2.0, 4), (4.0, 4), (4.0, 4), None]


@pytest.mark.parametrize("as_table", [True, False])
def test_a_member_of_a_column_is_named_with_a_dot(as_table):
    rows = [row("a", extra_info={"index": 0, "rate": {"r1": 0.25}}), row("b", extra_info={"index": 1, "rate": None})]
    dataset = table(*rows) if as_table else rows
    values, _ = from_accuracy_column(dataset, "extra_info.rate.r1", 4)
    assert by_slot(values, dataset_keys(dataset)) == [(1.0, 4), None]


def test_a_column_whose_name_has_a_dot_is_found_too():
    dataset = table(row("a", **{"rate.r1": 0.25}))
    values, _ = from_accuracy_column(dataset, "rate.r1", 4)
    assert by_slot(values, dataset_keys(dataset)) == [(1.0, 4)]


def test_of_repeated_rows_the_first_accuracy_counts_once():
    dataset = table(*(row("a", difficulty=accuracy) for accuracy in (None, 0.5, 0.5, 0.75)), row("b", difficulty=1.0))
    values, report = from_accuracy_column(dataset, "difficulty", 4)
    assert by_slot(values, dataset_keys(dataset)) == [(2.0, 4), (4.0, 4)]
    assert report.notes == ("1 rows repeat a prompt with another accuracy than its first row, which counts",)


@pytest.mark.parametrize(
    ("accuracy", "trials", "error", "message"),
    [
        (62.5, 8, SpoRewardError, r"row 1 of the dataset, 'difficulty' is 62.5; .*divide percentages by 100"),
        (-0.1, 8, SpoRewardError, "is -0.1"),
        (0.5, None, SpoConfigError, "row 0 .*state trials"),
        (0.5, 0, SpoConfigError, "trials=0"),
        (0.5, 2.5, SpoConfigError, "trials=2.5"),
    ],
)
def test_impossible_numbers_are_refused(accuracy, trials, error, message):
    with pytest.raises(error, match=message):
        from_accuracy_column(with_accuracy(0.5, accuracy), "difficulty", trials)


@pytest.mark.parametrize(
    ("accuracy", "trials", "message"),
    [
        ("9/8", None, "row 1 .* is '9/8'; write successes/trials"),
        ("0/0", None, "is '0/0'"),
        ("1/x", None, "is '1/x'"),
        ("easy", 8, "is 'easy'; an accuracy is"),
        ("1/4", 8, "is of 4 trials and not of 8"),
    ],
)
def test_impossible_texts_are_refused(accuracy, trials, message):
    with pytest.raises(SpoRewardError, match=message):
        from_accuracy_column(with_accuracy("5/8", accuracy), "difficulty", trials)


@pytest.mark.parametrize("column", ["accuracy", "prompt.accuracy", "extra_info.accuracy"])
def test_a_column_that_is_not_there_is_named(column):
    with pytest.raises(SpoConfigError, match=rf"under '{column}' \(columns: data_source, difficulty, "):
        from_accuracy_column(with_accuracy(0.5), column, 8)
    with pytest.raises(SpoConfigError, match=rf"under '{column}' \(columns: unknown\)"):
        from_accuracy_column([row("a")], column, 8)

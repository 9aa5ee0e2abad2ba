"""``spo.value.features``: numbers of a column or of a function, per prompt, or a refusal that says what to name."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest

from spo_verl.config import SpoConfig, ValueConfig
from spo_verl.data import dataset_keys
from spo_verl.errors import SpoConfigError
from spo_verl.training.features import read_features
from tests.data.rows import row, table

ROWS = [
    row(f"{n} + 1", "1", level=n % 3, extra_info={"index": n, "split": "train", "hard": n > 4}, wide=[n])
    for n in range(9)
]
OWN = "tests.training.test_features"


def digits(dataset):
    return [len(one["prompt"][0]["content"]) + one["level"] for one in dataset]


def two(dataset):
    return np.arange(2 * len(dataset)).reshape(-1, 2)


def text(dataset):
    return ["x"] * len(dataset)


def short(dataset):
    return [1.0]


def unknown(dataset):
    return [np.nan, *range(len(dataset) - 1)]


def read(*features, rows=ROWS, dataset=None):
    spo = SpoConfig(value=ValueConfig(readout="calibrated", features=list(features)))
    dataset = table(*rows) if dataset is None else dataset
    return read_features(spo, dataset, dataset_keys(dataset))


def standard(numbers):
    numbers = np.asarray(numbers, dtype=float)
    return ((numbers - numbers.mean()) / numbers.std()).astype(np.float32)


def test_without_them_nothing_is_read():
    assert read_features(SpoConfig(), object(), dataset_keys(ROWS)) is None


def test_columns_and_members_and_functions(caplog):
    with caplog.at_level(logging.INFO, logger="spo_verl"):
        found = read("level", "extra_info.index", "extra_info.hard", f"{OWN}:digits", f"{OWN}:two")
    assert found.names == (
        "level", "extra_info.index", "extra_info.hard", f"{OWN}:digits", f"{OWN}:two[0]", f"{OWN}:two[1]",
    )  # fmt: skip
    numbers = range(9)
    expected = [
        [n % 3 for n in numbers],
        list(numbers),
        [n > 4 for n in numbers],
        [5 + n % 3 for n in numbers],
        [2 * n for n in numbers],
        [2 * n + 1 for n in numbers],
    ]
    for column_P, wanted in zip(found.feature_PF.T, expected, strict=True):
        np.testing.assert_allclose(column_P, standard(wanted), atol=1e-6)
    assert "has 6 features of yours: level, extra_info.index" in caplog.text


def test_slots_take_the_numbers_of_their_rows():
    rows = [ROWS[0], ROWS[0] | {"level": 7}, *ROWS[1:]]
    keys = dataset_keys(table(*rows))
    assert len(keys.key_P) == 9
    found = read("level", rows=rows)
    levels = [rows[place]["level"] for place in keys.row_of_slot_P.tolist()]
    np.testing.assert_allclose(found.feature_PF[:, 0], standard(levels), atol=1e-6)


def test_verls_dataset_is_read_from_its_table():
    verls = SimpleNamespace(dataframe=table(*ROWS))
    verls_dataset = type("Dataset", (), {
        "__len__": lambda self: 9, "__getitem__": lambda self, n: ROWS[n], "dataframe": verls.dataframe,
    })()  # fmt: skip
    np.testing.assert_array_equal(read("level", dataset=verls_dataset).feature_PF, read("level").feature_PF)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (["depth"], r"'depth' gives no finite number .* no such column, only \['data_source', 'extra_info', 'level'"),
        (["extra_info.depth"], "'extra_info.depth' gives no"),
        (["extra_info.split"], "row 0 has 'train'"),
        (["level.deep"], "row 0 has 'None'"),
        (["extra_info"], "row 0 has "),
        (["wide"], r"row 0 has '\[0\]'"),
        ([f"{OWN}:text"], "returned no numbers"),
        ([f"{OWN}:short"], r"returned the shape \(1,\), not \(9,\) or \(9, F\)"),
        ([f"{OWN}:unknown"], "row 0 has nan"),
        (["nowhere:f"], r"spo.value.features='nowhere:f' cannot be loaded"),
        (["level", "level"], "each different"),
    ],
)
def test_what_gives_no_number_is_refused(features, words):
    with pytest.raises(SpoConfigError, match=words):
        read(*features)


def test_what_is_alike_for_all_prompts_is_refused():
    with pytest.raises(SpoConfigError, match="'level' is the same for all prompts"):
        read("level", rows=[one | {"level": 3} for one in ROWS])


def test_a_dataset_without_a_table_is_refused_and_its_function_is_not():
    with pytest.raises(SpoConfigError, match="a dataset of type list has no table"):
        read("level", dataset=ROWS)
    assert read(f"{OWN}:digits", dataset=ROWS).names == (f"{OWN}:digits",)

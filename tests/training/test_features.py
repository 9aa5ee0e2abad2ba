"""``spo.value.features``: numbers of a column or of a function, per prompt, or a refusal that says what to name."""

import logging
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pytest

from spo_verl.config import SpoConfig, ValueConfig
from spo_verl.data import dataset_keys
from spo_verl.errors import SpoConfigError
from spo_verl.training.features import read_features, require_functions
from tests.data.rows import row, table

ROWS = [
    row(f"{n} + 1", "1", level=n % 3, extra_info={"index": n, "split": "train", "hard": n > 4}, wide=[n])
    for n in range(9)
]
OWN = "tests.training.test_features"


def digits(dataset):
    return [len(one["prompt"][0]["content"]) + one["level"] for one in dataset]


def levels(dataset):
    return [one["level"] or 0 for one in dataset]


def two(dataset):
    return np.arange(2 * len(dataset)).reshape(-1, 2)


def text(dataset):
    return ["x"] * len(dataset)


def per_row(row):
    raise KeyError("level")


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
    assert "feature extra_info.index of the calibrated read-out: mean 4, standard deviation 2.582" in caplog.text


def test_slots_take_the_numbers_of_their_rows():
    rows = [ROWS[0], ROWS[0] | {"level": 7}, *ROWS[1:]]  # the first of two rows of a prompt
    keys = dataset_keys(table(*rows))
    assert len(keys.key_P) == 9
    rows[1] |= {"level": None}  # of a row that no prompt is trained with
    of_rows = [rows[place]["level"] for place in keys.row_of_slot_P.tolist()]
    assert of_rows != [one["level"] for one in rows][:9]
    for name in ("level", f"{OWN}:levels"):
        np.testing.assert_allclose(read(name, rows=rows).feature_PF[:, 0], standard(of_rows), atol=1e-6)


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
        (["extra_info.depth"], r"row 0 has no 'depth' there, only \['hard', 'index', 'split'\]"),
        (["extra_info.split"], "row 0 has 'train'"),
        (["level.deep"], "row 0 has 0 where 'deep' is looked for"),
        (["extra_info"], "row 0 has {'"),
        (["wide"], r"row 0 has \[0\]"),
        ([f"{OWN}:text"], "what it returned has the type <U1; it must be numbers"),
        ([f"{OWN}:per_row"], "called once with the whole dataset and raised KeyError: 'level'"),
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


def test_names_with_dots_and_colons_and_decimals():
    rows = [one | {"a.b": n, "c:d": Decimal(n)} for n, one in enumerate(ROWS)]
    found = read("a.b", "c:d", rows=rows)
    np.testing.assert_allclose(found.feature_PF, np.stack([standard(range(9))] * 2, axis=1), atol=1e-6)


def test_a_number_that_is_far_from_the_others_is_named(caplog):
    rows = [row(f"{n} + 2", level=10**9 if n == 0 else n % 3) for n in range(20_000)]
    with caplog.at_level(logging.INFO, logger="spo_verl"):
        read("level", rows=rows)
    assert "one as far as 141 standard deviations: most prompts hardly differ" in caplog.text


@pytest.mark.parametrize("name", ["nowhere.mod:digits", f"{OWN}:nothing", f"{OWN}:ROWS"])
def test_a_function_that_is_not_there_ends_the_run_before_it_begins(name):
    with pytest.raises(SpoConfigError, match="spo.value.features=.* cannot be loaded"):
        require_functions(SpoConfig(value=ValueConfig(readout="calibrated", features=[name])))


def test_a_module_that_fails_is_named(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SpoConfigError, match="'broken_module:f' cannot be loaded .SyntaxError"):
        require_functions(SpoConfig(value=ValueConfig(readout="calibrated", features=["broken_module:f"])))
    require_functions(SpoConfig(value=ValueConfig(readout="calibrated", features=["level", "extra_info.level"])))

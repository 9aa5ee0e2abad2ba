"""Ground truths: what the reward and the check of data refuse, and what several right answers look like."""

from decimal import Decimal

import numpy as np
import pytest

from spo_verl.agent.grading.truths import UnusableTruth, right_answers
from spo_verl.data.prepare.answers import read_answer
from spo_verl.data.prepare.checking import check_row
from spo_verl.data.prepare.data_errors import RowError

NAN = float("nan")
UNUSABLE = [
    *("", " ", "\n\t", r"\boxed{}", r"\boxed{ }", "$$", "$ $", r"\text{}", r"\,", "{}", "."),
    *("nan", "NaN", "None", "null", "<NA>", "inf", "-inf", "Infinity", r"\boxed{nan}", r"\frac{1}{2", "1}"),
    *("[]", '[""]', "[null]", '["36", null]', '["nan"]', '["36", "37"', '[["36"]]', '[{"a": 1}]', "[true]"),
    *(None, True, False, NAN, np.float64("nan"), float("inf"), -float("inf"), Decimal("NaN")),
    *([], [""], [None], [NAN], ["36", NAN], [None, None], [["36"]], {"answer": 5}, {}, b"36", {36}),
    *(np.array([]), np.array([NAN]), np.array([True])),
]


@pytest.mark.parametrize("truth", UNUSABLE, ids=repr)
def test_what_nothing_can_equal_is_refused(truth):
    with pytest.raises(UnusableTruth):
        right_answers(truth)


@pytest.mark.parametrize(
    ("truth", "answers"),
    [
        ("36", ["36"]),
        (" 36 ", ["36"]),
        (36, ["36"]),
        (36.0, ["36"]),
        (0.5, ["0.5"]),
        (np.int64(36), ["36"]),
        (np.array(["36", "37"]), ["36", "37"]),
        (Decimal("2.50"), ["2.50"]),
        (["36", 37], ["36", "37"]),
        ('["36", "37"]', ["36", "37"]),
        ("['36', '37']", ["36", "37"]),
        ("[36]", ["36"]),
        ("[36, 37]", ["[36, 37]"]),
        ("[0, 1)", ["[0, 1)"]),
        (r"so \boxed{36}", ["36"]),
        ("6 * 6\n#### 36", ["36"]),
        (r"\infty", [r"\infty"]),
        (r"\text{None}", [r"\text{None}"]),
        ("none", ["none"]),
        (r"\emptyset", [r"\emptyset"]),
        (r"\{\}", [r"\{\}"]),
    ],
)
def test_right_answers(truth, answers):
    assert right_answers(truth) == answers


def row(truth, ability="math"):
    prompt = [{"role": "user", "content": "?"}]
    return {"data_source": "x", "prompt": prompt, "reward_model": {"ground_truth": truth}, "ability": ability}


@pytest.mark.parametrize("truth", UNUSABLE, ids=repr)
def test_the_check_of_data_refuses_what_the_reward_refuses(truth):
    with pytest.raises(RowError, match="row 17, field reward_model.ground_truth: "):
        check_row(17, row(truth.tolist() if isinstance(truth, np.ndarray) else truth))


def test_the_check_of_data_takes_what_the_reward_takes():
    for truth in ("36", ["36", "37"], '["36", "37"]', r"\frac12", "Evelyn", "12:00"):
        check_row(17, row(truth))
    check_row(17, row("def f(): {", ability="code"))  # another reward's business


@pytest.mark.parametrize("value", [NAN, float("inf"), "nan", "None", r"\boxed{}", r"\frac{1}{2"])
def test_preparing_refuses_such_answers(value):
    for rule in ("latex", "number_or_text", "integer"):
        with pytest.raises(ValueError, match="."):
            read_answer(rule, value)

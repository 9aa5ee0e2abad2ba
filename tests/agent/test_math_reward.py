"""The reward as verl calls it: right and wrong pairs, forms of answers, nasty responses, verl's own managers."""

import asyncio
import importlib.util
import json
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spo_verl.agent import math_reward
from spo_verl.agent.math_reward import compute_score
from spo_verl.errors import SpoConfigError, SpoRewardError
from tests.agent.grading.test_truths import UNUSABLE

pytest.importorskip("math_verify")


def grade(answer, truth, **more):
    return compute_score("aime_2024", f"Therefore $\\boxed{{{answer}}}$.", truth, **more)


RIGHT = [  # answer, ground truth
    ("113", "113"),
    ("0113", "113"),
    ("1,234", "1234"),
    ("10{,}000", "10000"),
    ("\\frac{1}{2}", "0.5"),
    ("0.333333", "\\frac{1}{3}"),
    ("-\\frac{9}{2}", "-4.5"),
    ("x=5", "5"),
    ("5", "x=5"),
    ("\\sqrt{12}", "2\\sqrt{3}"),
    ("\\frac{9}{\\sqrt{23}}", "\\frac{9\\sqrt{23}}{23}"),
    ("\\frac{\\sqrt{17}-1}{2}", "-\\frac12+\\frac{\\sqrt{17}}{2}"),
    ("3\\sqrt2 + 1", "1+3\\sqrt{2}"),
    ("\\frac{\\pi}{4}", "\\pi/4"),
    ("2^{10}", "1024"),
    ("2^{99}", "633825300114114700748351602688"),
    ("10!", "3628800"),
    ("\\binom{10}{3}", "120"),
    ("(1, 2)", "\\left(1,2\\right)"),
    ("(\\sqrt{4}, 3)", "(2,3)"),
    ("(-\\infty, 2]", "(-\\infty,2]"),
    ("[0,1)", "\\left[0, 1\\right)"),
    ("[0, 1] \\cup [2, 3]", "[0,1]\\cup[2,3]"),
    ("\\{3,2,1\\}", "\\{1,2,3\\}"),
    ("1, 2", "2, 1"),
    ("5 \\text{ or } 6", "5, 6"),
    ("\\pm 3", "3, -3"),
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{bmatrix} 1 & 2 \\\\ 3 & 4 \\end{bmatrix}"),
    ("50\\%", "50"),
    ("50\\%", "0.5"),
    ("50", "50\\%"),
    ("12\\text{ cm}", "12"),
    ("12 \\text{ square units}", "12"),
    ("30^\\circ", "30"),
    ("30", "30^{\\circ}"),
    ("\\$18", "18"),
    ("18.00", "18"),
    ("\\text{(C)}", "C"),
    ("\\text{Yes}", "yes"),
    ("x^2 + 2x + 1", "(x+1)^2"),
    ("\\log_2 8", "3"),
    ("\\frac{1}{2^{2024}}", "2^{-2024}"),
]
WRONG = [
    ("113", "114"),
    ("-113", "113"),
    ("0.33", "\\frac{1}{3}"),
    ("\\sqrt{12}", "2\\sqrt{5}"),
    ("(1,2)", "(2,1)"),
    ("[0,1]", "[0,1)"),
    ("(0,1)", "[0,1)"),
    ("\\{1,2\\}", "\\{1,2,3\\}"),
    ("1, 2, 3", "2"),
    ("5 \\text{ or } 6", "5"),
    ("\\pm 3", "3"),
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{pmatrix}1&3\\\\2&4\\end{pmatrix}"),
    ("x^2+1", "y^2+1"),
    ("x+1", "x+2"),
    ("yes", "no"),
    ("\\text{even}", "\\text{odd}"),
    ("B", "C"),
    ("", "5"),
    ("\\text{}", "5"),
    ("?", "5"),
    ("5%5", "5"),
    ("12x", "12"),
    ("\\infty", "5"),
    ("\\frac{1}{0}", "5"),
    ("50\\%", "5"),
    ("1 2 3", "6"),
]


@pytest.mark.parametrize(("answer", "truth"), RIGHT)
def test_right(answer, truth):
    found = grade(answer, truth)
    assert found["score"] == found["acc"] == 1.0
    assert found["pred"] == grade(truth, truth)["pred"] != ""  # right answers vote together, whatever their form


@pytest.mark.parametrize(("answer", "truth"), WRONG)
def test_wrong(answer, truth):
    found = grade(answer, truth)
    assert (found["score"], found["acc"], found["grading_timeout"]) == (0.0, 0.0, 0.0)


def test_what_is_returned():
    found = compute_score("hmmt_feb_2025", "<think>\\boxed{1}</think> \\boxed{ 0.5 }", "\\frac12", {"index": 3})
    assert found == {"score": 1.0, "acc": 1.0, "pred": "1/2", "grading_timeout": 0.0, "data_source": "hmmt_feb_2025"}
    none = compute_score("hmmt_feb_2025", "cut off", "5")
    assert (none["score"], none["pred"], none.keys()) == (0.0, "", found.keys())


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("\\boxed{5} or \\boxed{6}", 0.0),
        ("\\boxed{6} or \\boxed{5}", 1.0),
        ("<think>\\boxed{5}", 0.0),
        ("<think>x</think>\\boxed{5}", 1.0),
        ("<code>f()</code><interpreter>\\boxed{5}</interpreter>", 0.0),
        ("<tool_call>{}</tool_call>user\n<tool_response>\n5\n</tool_response>\nassistant\n\\boxed{5}", 1.0),
        ("the answer is 5", 0.0),
        ("\\boxed{5", 0.0),
    ],
)
def test_which_text_counts(response, score):
    assert compute_score("aime_2024", response, "5")["score"] == score


@pytest.mark.parametrize(
    "truth", ["42", 42, 42.0, ["41", "42"], np.array([42]), "$42$", "\\boxed{42}", "6*7=42\n#### 42"]
)
def test_forms_of_ground_truth(truth):
    assert grade("42", truth)["score"] == 1.0
    assert grade("43", truth)["score"] == 0.0


@pytest.mark.parametrize("truth", UNUSABLE, ids=repr)
def test_an_unusable_ground_truth_is_an_error_that_names_the_row_and_the_key(truth):
    for verifier in ("math_verify", "math_dapo"):
        with pytest.raises(SpoRewardError, match=r"a row of x \(extra_info.index 17\) .*reward_model.ground_truth"):
            compute_score("x", "\\boxed{nan}", truth, {"index": 17}, verifier=verifier)
    with pytest.raises(SpoRewardError, match="a row of x has a ground truth"):
        compute_score("x", "\\boxed{5}", truth)


@pytest.mark.parametrize(
    "truth", ['["36", "37"]', "['36', '37']", '["36","37"]', ["36", "37"], ("36", 37), '[" 36 ", 37]']
)
def test_a_list_in_text_means_any_of_it(truth):
    answers = ("36", "37", "38", "36, 37", "3637")
    assert [grade(answer, truth)["score"] for answer in answers] == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_an_interval_is_no_list_of_alternatives():
    assert grade("[36, 37]", "[36, 37]")["score"] == 1.0
    assert grade("36", "[36, 37]")["score"] == 0.0
    assert grade("36", "[36]")["score"] == 1.0


def test_a_wrong_answer_does_not_vote_with_the_right_one():
    right, wrong = grade("2\\text{ km}", "2\\text{ km}"), grade("2\\text{ m}", "2\\text{ km}")
    assert (right["score"], wrong["score"]) == (1.0, 0.0)
    assert right["pred"] != wrong["pred"]


def test_gsm8k_answers_after_hashes_count_there_only():
    assert compute_score("gsm8k", "6 * 7 is 42\n#### 42", "42")["score"] == 1.0
    assert compute_score("gsm8k", "#### 41 \\boxed{42}", "42")["score"] == 1.0
    assert compute_score("aime_2024", "#### 42", "42")["score"] == 0.0


def test_math_dapo():
    assert grade("42", "42", verifier="math_dapo")["score"] == 1.0
    assert grade("43", "42", verifier="math_dapo")["score"] == 0.0
    assert compute_score("x", "Answer: 42", "42", verifier="math_dapo")["score"] == 1.0
    assert compute_score("x", "Answer: 42", "42", verifier="math_dapo", strict_box=True)["score"] == 0.0
    assert grade("\\sqrt{12}", "2\\sqrt{3}", verifier="math_dapo")["score"] == 0.0
    none = compute_score("x", "nothing", "42", verifier="math_dapo")
    assert (none["score"], none["acc"], none["pred"]) == (0.0, 0.0, "")


def test_conditions_make_a_response_wrong():
    names = "reference"
    good = compute_score("x", "<think>a</think>\\boxed{5}", "5", conditions=names)
    assert (good["score"], good["format_ok"], good["pred"]) == (1.0, 1.0, "5")
    bad = compute_score("x", "\\boxed{5}", "5", conditions=["reference"])
    assert (bad["score"], bad["format_ok"], bad["pred"], bad.keys()) == (0.0, 0.0, "", good.keys())
    assert "format_ok" not in compute_score("x", "\\boxed{5}", "5")


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"verifier": "sympy"}, "choose from math_verify, math_dapo"),
        ({"verifer": "math_dapo"}, "there is no setting verifer"),
        ({"seconds": 0}, "seconds=0"),
        ({"processes": 0, "memory_mb": 1}, "memory_mb=1.*processes=0"),
        ({"conditions": "one"}, "there is no condition one"),
    ],
)
def test_wrong_settings_are_refused(settings_, words):
    with pytest.raises(SpoConfigError, match=words):
        grade("5", "5", **settings_)


def test_what_verl_adds_for_reward_models_is_taken():
    assert grade("5", "5", reward_router_address="host:1", reward_model_tokenizer=None)["score"] == 1.0


def test_without_math_verify_the_first_row_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    math_reward._checked.cache_clear()
    with pytest.raises(SpoConfigError, match=r"pip install 'math-verify"):
        grade("5", "5")
    assert grade("5", "5", verifier="math_dapo")["score"] == 1.0
    monkeypatch.undo()
    math_reward._checked.cache_clear()


NASTY = [
    "9^{9^{9^{9^9}}}",
    "99999999!",
    "((((((((((((((((((((((((((((((((((1))))))))))))))))))))))))))))))))))",
    "{" * 200 + "1" + "}" * 200,
    "\\frac{1}{" * 60 + "1" + "}" * 60,
    "\\sqrt{" * 100 + "2" + "}" * 100,
    "1" * 499,
    "9" * 5000,
    "x" * 499,
    "\\binom{10000000}{5000000}",
    "\\sum_{k=1}^{10^{12}} k",
    "\\int_0^1 x^{x^x} dx",
    "\\lim_{n\\to\\infty} (1+1/n)^n",
    "\x00\x01\x7f",
    "\ud800 5",
    "💥∑∫√²٣",
    "__import__('os').system('false')",
    "\\input{/etc/passwd}",
    "$" * 100,
    "\\" * 99,
    "\\text{" * 80,
    "1=2=3=4=5",
    "5,,,,5",
    "a" + "_{b" * 60 + "}" * 60,
    "nan",
    "\\infty-\\infty",
    "\\begin{pmatrix}" * 20,
    "%" * 50,
]


@pytest.mark.parametrize("answer", NASTY, ids=lambda answer: ascii(answer[:20]))
def test_nasty_answers_are_wrong_within_the_limits(answer):
    started = time.monotonic()
    found = grade(answer, "5\\sqrt{2}", seconds=1.0, processes=1)
    assert found["score"] == 0.0
    assert time.monotonic() - started < 30  # a new process may have to start, on a busy machine
    json.dumps(found).encode()
    found["pred"].encode()


def test_a_timeout_is_told_and_not_remembered():
    found = grade("9^{9^{9^{9^9}}}", "5\\sqrt{2}", seconds=0.5, processes=1)
    assert (found["grading_timeout"], found["score"]) == (1.0, 0.0)
    assert not [pair for pair in math_reward._memory._verdicts if "9^{9" in pair[1]]


# fmt: off
TOKENS = st.sampled_from([
    "\\boxed{", "}", "{", "\\frac", "\\sqrt", "1", "2", "9", "x", "^", "_", "!", "+", "-", ",", "(", ")", "[",
    "]", "\\%", "\\left", "\\right", "=", "<", "\\pi", "\\text{", "$", "&", "\\\\", "\\{", "\\}", " ",
    "</think>", "<interpreter>",
])
# fmt: on


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(TOKENS, max_size=14).map("".join), st.sampled_from(["5", "2\\sqrt{3}", "(1,2)", "x+1"]))
def test_no_response_breaks_it(middle, truth):
    for response in (f"\\boxed{{{middle}}}", middle):
        found = compute_score("x", response, truth, seconds=0.5, processes=1)
        assert found["score"] in (0.0, 1.0)
        assert found["score"] == found["acc"]


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.text(max_size=200))
def test_no_text_breaks_it(response):
    for verifier in ("math_verify", "math_dapo"):
        for text in (response, f"\\boxed{{{response}}}"):
            assert compute_score("x", text, "5", verifier=verifier, seconds=0.5, processes=1)["score"] in (0.0, 1.0)


class Characters:
    """A tokenizer of characters whose token 0 is special, as ``<|im_end|>`` is."""

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return "".join(chr(token) for token in ids.tolist() if token)


def test_through_verls_reward_manager_in_threads():
    """verl calls a reward that is no coroutine in threads of an executor; signals would not work there."""
    import torch
    from omegaconf import OmegaConf
    from verl import DataProto
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
    from verl.trainer.ppo.reward import get_custom_reward_fn

    config = OmegaConf.create(
        {
            "reward": {
                "custom_reward_function": {
                    "path": "pkg://spo_verl.agent.math_reward",
                    "name": "compute_score",
                    "reward_kwargs": {"conditions": ["one_box"], "processes": 2},
                }
            }
        }
    )
    rows = [(f"so \\boxed{{\\sqrt{{{2 * n * n + n % 2}}}}}", f"{n}\\sqrt{{2}}") for n in range(2, 10)]

    def data(response, truth):
        ids = torch.tensor([[ord(character) for character in response] + [0]])
        return DataProto.from_dict(
            tensors={"responses": ids, "attention_mask": torch.ones_like(ids)},
            non_tensors={
                "data_source": np.array(["hmmt_feb_2025"], dtype=object),
                "reward_model": np.array([{"ground_truth": truth}], dtype=object),
                "extra_info": np.array([{}], dtype=object),
            },
        )

    async def all_rows():
        manager = NaiveRewardManager(config, Characters(), get_custom_reward_fn(config))
        return await asyncio.gather(*(manager.run_single(data(*row)) for row in rows))

    found = asyncio.run(all_rows())
    assert [one["reward_score"] for one in found] == [1.0, 0.0] * 4
    assert found[0]["reward_extra_info"]["format_ok"] == 1.0


def test_verl_reports_majorities_from_pred():
    from verl.trainer.ppo.metric_utils import process_validation_metrics

    responses = ["\\boxed{0.5}", "\\boxed{\\frac12}", "\\boxed{7}", "\\boxed{7}", "\\boxed{1/2}"] * 40
    graded = [compute_score("aime_2024", response, "1/2") for response in responses]
    infos = {key: [one[key] for one in graded] for key in graded[0]} | {"reward": [one["score"] for one in graded]}
    found = process_validation_metrics(["aime_2024"] * 200, ["uid"] * 200, infos)["aime_2024"]
    assert found["acc"]["mean@200"] == pytest.approx(0.6)
    assert found["acc"]["maj@200/mean"] > 0.95
    assert "pred" not in found
    assert "data_source" not in found

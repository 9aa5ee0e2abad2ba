"""Conditions on the form of a response."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spo_verl.agent.grading.conditions import CONDITIONS, all_met, chosen
from spo_verl.agent.math_reward import compute_score
from spo_verl.errors import SpoConfigError
from tests.core.helpers import property_test

GOOD = "<think>a <code>1</code><interpreter>1</interpreter></think>So \\boxed{1}."
CASES = {
    "think_closed_once": ["no thinking \\boxed{1}", GOOD + "</think>"],
    "text_after_thinking": ["</think><code>1</code>\\boxed{1}", "</think>\\boxed{1}<interpreter>"],
    "box_near_end": ["</think>\\boxed{1}" + "." * 101],
    "one_box": [GOOD + "\\boxed{2}", "</think> none"],
    "box_after_tools": ["\\boxed{1}<interpreter>1</interpreter> done", "a<tool_response>\\boxed{1}</tool_response>"],
    "blocks_closed": ["<code>1", GOOD + "<interpreter>", "</tool_call>"],
}


def test_every_condition_is_met_by_a_good_response_and_can_fail():
    assert CASES.keys() == CONDITIONS.keys()
    for name, bad in CASES.items():
        assert all_met(GOOD, [name])
        assert [response for response in bad if all_met(response, [name])] == []


def test_names():
    assert chosen(None) == chosen("") == chosen([]) == ()
    reference = ("think_closed_once", "text_after_thinking", "box_near_end")
    assert chosen("one_box, reference") == ("one_box", *reference)
    assert chosen(["reference", "box_near_end"]) == reference
    with pytest.raises(SpoConfigError, match="no condition two_boxes; choose from reference, think_closed_once"):
        chosen(["two_boxes"])


def reference_reward(response, truth):
    """The published recipe's rule, step by step."""
    parts = response.split("</think>")
    if len(parts) != 2 or "<code>" in parts[1] or "<interpreter>" in parts[1]:
        return 0.0
    end = response[-100:]
    start = end.rfind("\\boxed{")
    if start < 0:
        return 0.0
    depth, inside = 0, ""
    for character in end[start + len("\\boxed") :]:
        depth += (character == "{") - (character == "}")
        inside += character
        if depth == 0:
            return float(inside[1:-1] == truth)
    return 0.0


PIECES = ["</think>", "<think>", "<code>", "</code>", "<interpreter>", "</interpreter>", "\\boxed{5}", "\\boxed{6}"]


@property_test
@given(st.lists(st.sampled_from([*PIECES, "x" * 60, " 5 "]), max_size=7).map("".join))
def test_the_reward_of_the_reference_recipe_is_the_same(middle):
    ends = ("", "</think>", "</think>\\boxed{5}", f"</think>{middle}\\boxed{{5}}.")
    for response in (f"<think>{middle}{end}" for end in ends):
        mine = compute_score("x", response, "5", verifier="math_dapo", strict_box=True, conditions="reference")
        assert mine["score"] == reference_reward(response, "5"), response

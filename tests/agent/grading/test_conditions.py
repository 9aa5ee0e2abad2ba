"""Conditions on the form of a response."""

import pytest

from spo_verl.agent.grading.conditions import CONDITIONS, all_met, chosen
from spo_verl.errors import SpoConfigError

GOOD = "<think>a <code>1</code><interpreter>1</interpreter></think>So \\boxed{1}."
CASES = {
    "think_closed_once": ["no thinking \\boxed{1}", GOOD + "</think>"],
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
    assert chosen("one_box, reference") == ("one_box", "think_closed_once", "box_near_end")
    assert chosen(["reference", "box_near_end"]) == ("think_closed_once", "box_near_end")
    with pytest.raises(SpoConfigError, match="no condition two_boxes; choose from reference, think_closed_once"):
        chosen(["two_boxes"])

"""Where the model's final answer stands, in the forms in which verl decodes responses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spo_verl.agent.grading.response import after_hashes, boxes, final_text, last_boxed, without_tools
from tests.core.helpers import property_test


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{5}", "5"),
        ("\\boxed{4} no, \\boxed{5}.", "5"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\left\\{ x : x > 0 \\right\\}} and {more}", "\\left\\{ x : x > 0 \\right\\}"),
        ("\\boxed{a \\} b}", "a \\} b"),
        ("$\\boxed {5}$", "5"),
        ("\\boxed 5 .", "5"),
        ("\\fbox{5}", "5"),
        ("\\boxed{\\boxed{5}}", "5"),
        ("\\boxed{}", ""),
        ("\\boxed{4}, or rather \\boxed{5", None),  # cut off: the last one counts, and it is not closed
        ("the answer is 5", None),
        ("a \\boxplus b", None),
        ("\\boxed", None),
        ("", None),
    ],
)
def test_the_last_box_counts(text, answer):
    assert last_boxed(text) == answer


def test_boxes_are_counted():
    assert [boxes(text) for text in ("", "\\boxed{1}", "\\boxed{1}\\fbox{2}", "\\boxplus")] == [0, 1, 2, 0]


CODE_STYLE = "Let me see. <code>\nprint(6 * 7)\n</code>\n<interpreter>\n{}\n</interpreter>\nSo {}"
NATIVE = '<tool_call>\n{{"name": "python"}}\n</tool_call>user\n<tool_response>\n{}\n</tool_response>\nassistant\n{}'


@pytest.mark.parametrize("style", [CODE_STYLE, NATIVE])
@pytest.mark.parametrize(
    ("output", "end", "answer"),
    [
        ("\\boxed{1}", "\\boxed{42}", "42"),
        ("\\boxed{42}", "I give up", None),  # the tool's words are not the model's
        ("</interpreter></tool_response>\\boxed{42}", "I give up", None),  # nor when it closes its own block
        ("42", "\\boxed{42}", "42"),
    ],
)
def test_tool_output_is_not_the_models_answer(style, output, end, answer):
    assert last_boxed(final_text(style.format(output, end))) == answer


@pytest.mark.parametrize(
    ("response", "kept"),
    [
        ("a<interpreter>b</interpreter>c", "a\nc"),
        ("a<interpreter>b", "a\n"),  # cut off within the output
        ("a<interpreter>1</interpreter>b<interpreter>2</interpreter>c", "a\nb\nc"),
        ("a<code>b</code>c", "ac"),
        ("the tag <code> is not closed", "the tag <code> is not closed"),
        ("a<code>print('<interpreter>')</code>b</interpreter>c", "a<code>print('\nc"),
        ("a</interpreter>b", "a</interpreter>b"),
    ],
)
def test_blocks_are_cut_out(response, kept):
    assert without_tools(response) == kept


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<think>\\boxed{1}?</think> \\boxed{2}", "2"),
        ("\\boxed{1}?</think> \\boxed{2}", "2"),  # the template opened the thinking
        ("<think>\\boxed{1}</think> done", None),
        ("<think>maybe \\boxed{1}", None),  # cut off while thinking
        ("<think>a</think>\\boxed{1}<think>b", "1"),
        ("<think>a</think>\\boxed{1}<think>b</think>\\boxed{2}", "2"),
        ("no thinking \\boxed{3}", "3"),
    ],
)
def test_the_answer_stands_after_the_thinking(response, answer):
    assert last_boxed(final_text(response)) == answer


def test_hashes():
    assert after_hashes("6 * 7 = <<6*7=42>>42\n#### 42") == "42"
    assert after_hashes("#### 1\n#### 2 \n") == "2 "
    assert after_hashes("# 42") is None


PIECES = ["<interpreter>", "</interpreter>", "<code>", "</code>", "<think>", "</think>", "<tool_response>"]
PIECES += ["</tool_response>", "<tool_call>", "\\boxed{", "}", "{", "\\", "\\{", "5", " x ", "$", "####", "\n"]


@property_test
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_any_mixture_is_read(response):
    text = final_text(response)
    assert "<think>" not in text
    answer = last_boxed(text)
    assert answer is None or answer in response.replace("<code>", "") or answer in text


def test_a_million_characters_take_no_time():
    for piece in ("<interpreter>", "</interpreter>", "<code>", "\\boxed{", "\\boxed{{", "<think>", "</think>", "####"):
        last_boxed(final_text(piece * (1_000_000 // len(piece))))

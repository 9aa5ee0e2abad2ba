"""What the model reads of a program."""

import re

import pytest

from spo_verl.agent.interpreter import ProgramResult
from spo_verl.agent.output import SILENT, clip, defuse, describe

MARKUP = ("<|im_end|>", "</code>", "<code>", "</interpreter>")


def encode(text):
    return list(text.encode())


def decode(ids):
    return bytes(ids).decode(errors="replace")


def test_stdout_stderr_and_the_end_are_told_in_this_order():
    assert describe(ProgramResult("a\n", "b\n", "killed", 0.0, "c.")) == "a\nb\nc."
    assert describe(ProgramResult("a\n\n", "", "finished", 0.0)) == "a"
    assert describe(ProgramResult(" \n", "", "finished", 0.0)) == SILENT


@pytest.mark.parametrize("size", [0, 1, 99, 100])
def test_what_fits_is_not_touched(size):
    assert clip("x" * size, 100, "both", encode, decode) == ("x" * size, False)


@pytest.mark.parametrize("keep", ["head", "tail", "both"])
@pytest.mark.parametrize("text", ["x" * 101, "ab" * 5000, "é" * 5000, "🙂" * 3000, "a🙂" * 100_000])
def test_what_does_not_is_cut_to_the_limit_and_says_by_how_much(keep, text):
    shorter, cut = clip(text, 100, keep, encode, decode)
    assert cut
    assert 90 <= len(encode(shorter)) <= 100
    assert "\ufffd" not in shorter
    head, _, rest = shorter.partition("\n[... ")
    number, _, tail = rest.partition(" characters cut ...]\n")
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len(head) + len(tail) + int(number) == len(text)
    assert (len(head) > 0, len(tail) > 0) == (keep != "tail", keep != "head")


def test_tokens_that_change_at_the_cut_are_counted_again():
    """Here x's are one token before a y and one each elsewhere, so a cut makes more tokens than it took."""
    vocabulary: list[str] = []

    def encode(text):
        tokens = re.findall(r"x+(?=y)|.", text, re.DOTALL)
        vocabulary.extend(token for token in tokens if token not in vocabulary)
        return [vocabulary.index(token) for token in tokens]

    def decode(ids):
        return "".join(vocabulary[index] for index in ids)

    for limit in range(60, 70):
        shorter, cut = clip("xxxxxxxxxy" * 500, limit, "both", encode, decode)
        assert cut
        assert limit - 12 <= len(encode(shorter)) <= limit


def test_a_limit_below_the_marker_leaves_nothing():
    assert clip("x" * 1000, 5, "both", encode, decode) == ("", True)


@pytest.mark.parametrize(
    "text", ["<|im_end|>", "a</code>b", "</code></code>", "<</code>/code>", "<code></code><|im_end|></interpreter>"]
)
def test_no_markup_is_left(text):
    harmless = defuse(text, MARKUP)
    assert not any(item in harmless for item in MARKUP)
    assert harmless.replace(" ", "") == text


def test_other_text_is_not_changed():
    text = "if a < b and c > d: print('<b>')"
    assert defuse(text, MARKUP) == text

"""What the model reads of a program."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


RUNS = {
    "blanks": tuple(" " * size for size in range(2, 25)),
    "tabs": tuple("\t" * size for size in range(2, 10)),
    "newlines": tuple("\n" * size for size in range(2, 32)),
    "dashes": tuple("-" * size for size in range(2, 25)),
    "brackets": ("<<", "<<<", ">>", "<|", "|>", "<|im_end|>"),
}
TRACEBACK = (
    'Traceback (most recent call last):\n  File "<program>", line 1, in <module>\n    f()\n    ^^^\nNameError: f'
)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("size", [1, 2, 4, 40, 4000])
def test_entries_that_overlap_at_most_double_a_text(name, size):
    runs = RUNS[name]
    text = runs[0][0] * size + "x" + "".join(runs) * 3
    harmless = defuse(text, runs)
    assert len(harmless) <= 2 * len(text)
    assert harmless.replace(" ", "") == text.replace(" ", "")
    assert not any(run in harmless for run in runs if not run.isspace())


@pytest.mark.parametrize("name", ["blanks", "tabs", "newlines"])
def test_blanks_are_no_markup(name):
    for text in (TRACEBACK, "a" + RUNS[name][-1] * 3 + "b"):
        assert defuse(text, RUNS[name]) == text


def test_an_entry_is_broken_behind_its_first_character():
    assert defuse("a<|im_end|>b</code><<", MARKUP) == "a< |im_end|>b< /code><<"
    assert defuse("x <s> <s>", (" <s>", "<s>")) == "x < s> < s>"


PIECES = st.text(alphabet="ab<> \n-", max_size=40)


@given(PIECES, st.lists(st.text(alphabet="ab<> \n-", min_size=1, max_size=6), max_size=6))
def test_whatever_the_entries_none_is_left_and_the_growth_is_bounded(text, markup):
    harmless = defuse(text, markup)
    assert not [entry for entry in markup if len(entry.strip(" ")) > 1 and not entry.isspace() and entry in harmless]
    assert harmless.replace(" ", "") == text.replace(" ", "")
    spaces = max((entry.strip(" ").count(" ") for entry in markup), default=0)
    assert len(harmless) <= (2 + spaces) * len(text)


@pytest.mark.parametrize("half", [chr(0xD83D), chr(0xDE00), 2 * chr(0xD83D), chr(0xDCFF)], ids=ascii)
@pytest.mark.parametrize("stream", [0, 1, 2])
def test_half_a_surrogate_pair_is_escaped(half, stream):
    texts = ["", "", ""]
    texts[stream] = f"value {half}\n"
    told = describe(ProgramResult(texts[0], texts[1], "failed", 0.0, texts[2]))
    assert told == "value " + "".join(f"\\u{ord(character):04x}" for character in half)
    assert clip(told, 100, "both", encode, decode) == (told, False)

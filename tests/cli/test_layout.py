"""Tables and paragraphs: every word is printed whole, at any width, and no line is longer than a word makes it."""

import io
import re
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from spo_verl.cli.layout import bars, command, paragraph, sparkline, table
from tests.cli.helpers import run
from tests.support.records import made_run

WORD = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=70)
TEXT = st.lists(WORD, min_size=1, max_size=12).map(" ".join)
HEADINGS = {*("recipe", "what", "it", "is", "for", "name", "use", "release", "rows", "licence", "hub", "id", "trains")}
HEADINGS |= {"value", "figure", "formula", "(configuration,", "split)"}
RUN_HEADINGS = {*("key", "row", "text", "sd", "step", "adv", "diverg", "ending", "steps", "setting", "source", "run")}
RUN_HEADINGS |= {"value", "n_eff", "draws", "drift", "reward", "rho", "tokens", "coverage", "prompts", "A", "B"}
"""Of tables over runs; with ``heading: text`` in the lists of a narrow terminal."""
WIDTHS = st.integers(20, 140)


def printed(width, show):
    stream = io.StringIO()
    show(Console(file=stream, width=width, force_terminal=True, no_color=True, highlight=False, legacy_windows=False))
    return [line.replace("\x1b[1m", "").replace("\x1b[0m", "") for line in stream.getvalue().splitlines()]


@given(WIDTHS, st.integers(1, 4).flatmap(lambda size: st.lists(st.tuples(*[TEXT] * size), min_size=1, max_size=4)))
def test_a_table_has_every_word_of_every_cell_in_order(width, rows):
    headings = [f"h{number}" for number in range(len(rows[0]))]
    lines = printed(width, lambda console: table(console, headings, rows))
    words = " ".join(lines).split()
    for row in rows:
        for cell in row:
            remaining = iter(words)
            assert all(word in remaining for word in cell.split())
    longest = max(len(word) for row in rows for cell in row for word in cell.split())
    assert all(len(line) <= max(width, longest + 12) for line in lines)


@given(WIDTHS, TEXT)
def test_a_paragraph_continues_under_its_beginning(width, text):
    lines = printed(width, lambda console: paragraph(console, text, first="  1. "))
    assert " ".join(" ".join(lines).split()[1:]) == text
    assert lines[0].startswith("  1. ")
    assert all(line.startswith("     ") for line in lines[1:])


def test_columns_are_aligned_where_there_is_room():
    lines = printed(40, lambda console: table(console, ("key", "what"), [("a", "b c"), ("long", "d")]))
    assert lines == ["key   what", "a     b c", "long  d"]


def test_the_last_column_wraps_where_it_has_room_enough():
    rows = [("key", "one two three four five six seven")]
    lines = printed(33, lambda console: table(console, ("key", "what"), rows))
    assert lines == ["key  what", "key  one two three four five six", "     seven"]


def test_rows_become_lists_where_columns_do_not_fit():
    rows = [("a.long.key.of.something", "some value that is longer than that")]
    lines = printed(30, lambda console: table(console, ("key", "value"), rows))
    assert lines == ["a.long.key.of.something", "  value: some value that is", "      longer than that"]


@given(WIDTHS, st.lists(st.tuples(WORD, WORD, TEXT), min_size=1, max_size=4))
def test_numbers_end_at_the_right_and_are_never_cut(width, rows):
    lines = printed(width, lambda console: table(console, ("h0", "h1", "h2"), rows, numbers=True))
    words = " ".join(lines).split()
    for row in rows:
        remaining = iter(words)
        assert all(word in remaining for cell in row for word in cell.split())
    if len(lines) == len(rows) + 1 and lines[0].startswith("h0 "):
        assert {len(line) for line in lines} == {len(lines[0])}


def test_numbers_are_aligned_where_there_is_room():
    rows = [("a", "7", "1.0 [0.5, 1.5]"), ("longer", "12", "-")]
    lines = printed(40, lambda console: table(console, ("key", "n", "mean"), rows, numbers=True))
    assert lines == ["key      n            mean", "a        7  1.0 [0.5, 1.5]", "longer  12               -"]


def test_without_a_width_a_paragraph_is_one_line(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    stream = io.StringIO()
    paragraph(Console(file=stream, width=30), "word " * 30, first="- ")
    assert len(stream.getvalue().splitlines()) == 1


def test_control_characters_are_visible():
    assert printed(40, lambda console: paragraph(console, "a\x1b[31mb")) == ["a\\x1b[31mb"]


def test_tables_of_the_other_verbs_fold_long_words():
    from spo_verl.cli.doctor import _show
    from spo_verl.cli.health.findings import Finding
    from spo_verl.cli.values_text import show_description

    word = "0123456789" * 9
    answer = {
        **dict.fromkeys(("prompts", "prompts_without_trials", "trials", "never_solved", "always_solved"), 1),
        **{"file": word, "policies": [word], "trials_per_prompt": None, "value_mean": None},
        **{"source": [{"kind": "dump", "date": "today", "sampling": word}], "value_histogram": []},
    }
    finding = Finding("group", "name", "fail", word, word)
    for show in (
        lambda console: show_description(console, answer),
        lambda console: _show(console, [finding], {"ok": 0, "warn": 0, "fail": 1}),
    ):
        stream = io.StringIO()
        show(Console(file=stream, width=60))
        digits = "".join(character for character in stream.getvalue() if character.isdigit())
        assert digits.count(word) >= 2
        assert "…" not in stream.getvalue()


@given(WIDTHS, st.lists(st.one_of(WORD, TEXT, st.just("a='b c'")), min_size=1, max_size=12))
def test_a_command_can_be_pasted_at_any_width(width, words):
    lines = printed(width, lambda console: command(console, words, first="  start:  "))
    assert shlex.split("\n".join(lines).replace("\\\n", " ").replace("start:", "", 1)) == words
    for line in lines:
        assert len(line) <= width or len(shlex.split(line.removesuffix("\\").replace("start:", "", 1))) == 1


@pytest.mark.parametrize(
    "verb", [("recipes", "ls"), ("data", "list"), pytest.param(("recipes", "show"), marks=pytest.mark.long),
             pytest.param(("plan",), marks=pytest.mark.long)]
)  # fmt: skip
def test_verbs_in_a_narrow_terminal_cut_no_word_and_stay_within_it(verb, monkeypatch):
    recipe = () if verb[-1] in ("ls", "list") else ("gsm8k_qwen3_0_6b/spo",)
    more = ("--explain", "--gpus", "8", "--prompts", "17000") if verb == ("plan",) else ()
    words = " ".join(run(*verb, *recipe, *more).stdout.split()).split()
    for width in (40, 60):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = run(*verb, *recipe, *more).stdout.splitlines()
        assert set(" ".join(lines).split()) >= {word for word in words if word not in HEADINGS}
        words_of = [line.removeprefix("start:").removesuffix("\\").split() for line in lines if len(line) > width]
        assert [found for found in words_of if len(found) > 1] == []  # a word alone may be wider than the terminal


@pytest.fixture(scope="module")
def made_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate("ab"):
        made_run(folder / name, mode="separate_async", prompts=40, steps=3, batch=12, checkpoint_every=2, seed=seed)
    return folder


@pytest.mark.parametrize("verb", ["tracker show a", "tracker prompt a 6", "tracker prompt a 3", "watch a", "diff a b"])
def test_verbs_over_runs_in_a_narrow_terminal(made_runs, verb, monkeypatch):
    monkeypatch.chdir(made_runs)
    query = ("what is",) if verb.endswith("3") else ()  # several prompts are listed
    arguments = [*verb.split()[: -1 if query else None], *query]
    words = run(*arguments).stdout.split()
    drawn = re.compile(r"[#\u2581-\u2588]+")
    for width in (40, 60):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = run(*arguments).stdout.splitlines()
        seen = set(" ".join(lines).split())
        assert {word for word in words if not drawn.fullmatch(word)} - seen - RUN_HEADINGS == set()
        assert [line for line in lines if len(line) > width and len(line.split()) > 1] == []


def test_bars_fit_and_sparklines_have_signs_for_every_stream():
    rows = [("0.0 to 0.1", 0), ("0.1 to 0.2", 1), ("0.2 to 1.0", 1234567)]
    for width in (40, 60, 140):
        lines = printed(width, lambda console: bars(console, rows))
        assert [line.split("  ")[1] for line in lines] == [label for label, _ in rows]
        assert max(map(len, lines)) <= width
        assert [line.count("#") for line in lines] == [0, 1, min(40, width - 25)]

    def line(numbers, encoding="utf-8", **more):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        return sparkline(Console(file=stream, width=40), numbers, **more)

    assert line([0, 0.5, 1, None, float("nan"), 2, -1]) == "\u2581\u2585\u2588  \u2588\u2581"
    assert line([0, 0.5, 1, 0.99], "ascii") == "_=##"
    assert line([0.0] * 50 + [1.0] * 50, "ascii") == "_" * 10 + "#" * 10
    assert line([3, 3], low=3, high=3) == "\u2585\u2585"
    assert line([]) == ""

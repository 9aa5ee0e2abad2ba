"""Answers, languages, instructions and equality of problems, and the wording of templates."""

import re

import pytest

from spo_verl.data.prepare.answers import is_whole, read_answer
from spo_verl.data.prepare.problem_texts import excerpt, is_english, overlap_hash, problem_hash, without_instruction
from spo_verl.data.prepare.published import SOURCES
from spo_verl.data.prepare.templates import BOXED, TEMPLATES, without_template
from tests.data.prepare.releases import AFTER, BEFORE


@pytest.mark.parametrize(
    ("rule", "value", "answer"),
    [
        ("integer", "033", "33"),
        ("integer", "000", "0"),
        ("integer", 33, "33"),
        ("integer", 33.0, "33"),
        ("integer", " $70$ ", "70"),
        ("integer", "-007", "-7"),
        ("integer", "-0", "0"),
        ("integer", "+5", "5"),
        ("integer", "12.00", "12"),
        ("integer", "336^\\circ", "336"),
        ("integer", "336^{\\circ}", "336"),
        ("integer", "9" * 5000, "9" * 5000),  # longer than what Python converts to a number
        ("number_or_text", "034", "34"),
        ("number_or_text", 1007, "1007"),
        ("number_or_text", "\\frac{1}{2}", "\\frac{1}{2}"),
        ("number_or_text", "$x+1$", "x+1"),
        ("after_hashes", "2+2=<<2+2=4>>4\n#### 4", "4"),
        ("after_hashes", "so #### 3 is wrong\n#### 1,234,500", "1234500"),
        ("after_hashes", "#### -12", "-12"),
        ("after_hashes", "#### $70", "70"),
        ("latex", " \\frac{1}{576} ", "\\frac{1}{576}"),
        ("latex", "$2^{99}$", "2^{99}"),
        ("latex", "$1$, $2$", "$1$, $2$"),
        ("latex", "007", "007"),
        ("latex", 5, "5"),
    ],
)
def test_answers(rule, value, answer):
    assert read_answer(rule, value) == answer


@pytest.mark.parametrize(
    ("rule", "value", "complaint"),
    [
        ("integer", "12.5", "'12.5' is not a whole number"),
        ("integer", "twelve", "is not a whole number"),
        ("integer", "1,000", "is not a whole number"),
        ("integer", None, "it is empty"),
        ("integer", " ", "it is empty"),
        ("integer", "$ $", "it is empty"),
        ("integer", True, "a bool is no answer"),
        ("integer", ["1"], "a list is no answer"),
        ("after_hashes", "The answer is 4.", "there is no '####'"),
        ("after_hashes", "####", "it is empty"),
        ("latex", {"a": 1}, "a dict is no answer"),
        ("number_or_text", "", "it is empty"),
    ],
)
def test_what_is_no_answer(rule, value, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        read_answer(rule, value)


def test_whole_numbers():
    assert [is_whole(text) for text in ("0", "-7", "1.5", "x", "")] == [True, True, False, False, False]


@pytest.mark.parametrize(
    "problem", ["Find $\\alpha + β ≤ ∑ x_i$.", "Erdős and Fermat’s café — “how many”?", "Δ∠ 45° √2 ∈ ℝ", "Привет: $x$"]
)
def test_formulas_and_letters_with_accents_are_no_other_language(problem):
    assert is_english(problem)


@pytest.mark.parametrize("problem", ["求 $x$ 的值", "Find $x$。", "Find（$x$）", "かな", "수학 x", "\U00020000"])
def test_one_east_asian_character_is_enough(problem):
    assert not is_english(problem)


@pytest.mark.parametrize("problem", ["One?", "Line one.\n\nLine two?", "Remember to solve it step by step.", "求 $x$"])
def test_the_instruction_of_dapo_goes_and_the_problem_stays(problem):
    assert without_instruction(f"{BEFORE}{problem}{AFTER}") == (problem, True)
    assert without_instruction(problem) == (problem, False)
    boxed = BEFORE.replace("$Answer (", "\\boxed{$Answer} (")
    assert without_instruction(f"{boxed}{problem}") == (problem, True)
    assert without_instruction(f"{problem}{AFTER}") == (problem, True)


def test_a_problem_that_quotes_the_instruction_in_its_middle_keeps_it():
    problem = "Why does the text 'Solve the following math problem step by step.' help?"
    assert without_instruction(f"{BEFORE}{problem}{AFTER}") == (problem, True)


@pytest.mark.parametrize("other", ["Find  $x$\nnow.", " Find $x$ now. "])
def test_white_space_makes_no_other_problem(other):
    assert problem_hash(other) == problem_hash("Find $x$ now.")


@pytest.mark.parametrize("other", ["find $x$ now.", "Find $y$ now.", "Find $x$ now"])
def test_anything_else_makes_another_problem(other):
    assert problem_hash(other) != problem_hash("Find $x$ now.")


@pytest.mark.parametrize(
    "other",
    [
        "let \\( x = \\frac{1}{2} \\) , find $x^2$",
        "Let $x=\\dfrac12$. Find $x^{2}$!",
        "Let \\[x\\,=\\,\\tfrac{1}{2}\\] Find \\left $x^2$ \\right.",
        "Let $x＝\\frac{1}{2}$; Find “$x^2$”",
    ],
)
def test_typesetting_makes_no_other_problem_for_the_overlap(other):
    assert overlap_hash(other) == overlap_hash("Let $x=\\frac{1}{2}$. Find $x^2$.")


@pytest.mark.parametrize(
    "other", ["Let $x=\\frac{1}{3}$. Find $x^2$.", "Let $x=-\\frac{1}{2}$. Find $x^2$.", "Find $x^2$."]
)
def test_other_numbers_and_operators_do(other):
    assert overlap_hash(other) != overlap_hash("Let $x=\\frac{1}{2}$. Find $x^2$.")


def test_commands_that_begin_like_spacing_stay():
    assert overlap_hash("$a \\rightarrow b$") != overlap_hash("$a arrow b$")
    assert overlap_hash("$a \\leftarrow b$") != overlap_hash("$a \\rightarrow b$")


def test_templates():
    assert list(TEMPLATES) == ["boxed", "code", "tool", "none"]
    assert BOXED == "Please reason step by step, and put your final answer within \\boxed{}."
    assert TEMPLATES["none"].render("x") == "x"
    for name, needed in {"boxed": BOXED, "code": "<code> and </code>", "tool": BOXED}.items():
        rendered = TEMPLATES[name].render("One?")
        assert rendered.startswith("One?\n\n")
        assert needed in rendered
        assert "\\boxed{}" in rendered
    assert len({template.instruction for template in TEMPLATES.values()}) == 4


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_a_template_can_be_taken_away(name):
    assert without_template(TEMPLATES[name].render("One?\n\nTwo.")) == "One?\n\nTwo."


def test_excerpts_are_one_line():
    assert excerpt("a\n b") == "a b"
    assert excerpt("x" * 100) == "x" * 77 + "..."


def test_rules_of_the_sources():
    assert {name for name, source in SOURCES.items() if source.english_only} == {"dapo_math_17k"}
    assert {source.answer_rule for source in SOURCES.values()} == {"integer", "number_or_text", "after_hashes", "latex"}

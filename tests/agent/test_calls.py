"""The program in what a model wrote: every shape of a code block gives the same program."""

import itertools
import json
import textwrap

import pytest

from spo_verl.agent.calls import Call, Malformed, parse_call

PROGRAMS = {
    "one line": "print(1)",
    "a block": "for i in range(3):\n    print(i)\nprint('end')",
    "tabs": "if True:\n\tx = 1\n\tprint(x)",
    "a comment first": "# sum\nx = 1\nprint(x)",
    "a blank line within": "x = 1\n\nprint(x)",
    "fences in a string": "s = '''\n```python\nx\n```\n'''\nprint(s)",
    "tildes in a string": "s = '~~~'\nprint(s)",
    "a string that is less indented": "if 1:\n    s = '''a\nb'''\n    print(s)",
    "a continued line": "x = (1 +\n  2)\nprint(x)",
    "a docstring": '"""Docs.\n\n  more\n"""\nprint(__doc__)',
}

FENCES = [
    f"{mark}{space}{language}{after}"
    for mark, space, language, after in itertools.product(
        ("```", "````", "~~~"), ("", " "), ("", "python", "Py", "{python3.11}"), ("", "  ")
    )
]


def program_of(body, style="code"):
    if style == "tool":
        body = json.dumps({"name": "x", "arguments": {"code": body}})
        return parse_call(f"<tool_call>{body}</tool_call>", "tool", "x")
    return parse_call(f"Text.\n<code>{body}</code>", "code", "x")


@pytest.mark.parametrize("style", ["code", "tool"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_fence_gives_the_same_program(name, style):
    code = PROGRAMS[name]
    bodies = [code, f"\n{code}\n", f"\n\n{code}\n\n  ", f"\ufeff{code}"]
    for opening in FENCES:
        mark = opening.strip()[: len(opening) - len(opening.lstrip("`~"))]
        bodies += [
            f"\n{opening}\n{code}\n{mark}\n",
            f"{opening}\n{code}\n{mark}",
            f" \n  {opening}\n{code}\n  {mark}  \n",
            f"\n{opening}\n\n{code}\n\n{mark}\n\n",
            f"\n{opening}\n{code}{mark}\n",
            f"\n{opening}\n{code}\n",  # not closed
        ]
    bodies.append(f"\n{code}\n```\n")  # not opened
    for body in bodies:
        assert program_of(body, style) == Call(code), body
        assert program_of(body.replace("\n", "\r\n"), style) == Call(code), body


@pytest.mark.parametrize("indent", [" ", "  ", "    ", "\t", "\t\t"])
@pytest.mark.parametrize("name", ["one line", "a block", "tabs", "a comment first", "a blank line within"])
def test_a_program_that_is_indented_as_a_whole_is_not(name, indent):
    code = PROGRAMS[name]
    shifted = textwrap.indent(code, indent)
    fenced = textwrap.indent(f"```python\n{code}\n```", indent)
    for body in (shifted, f"\n{shifted}\n{indent}", f"\n{fenced}\n", f"\n```python\n{shifted}\n```\n"):
        assert program_of(body) == Call(code), body


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_blank_behind_the_tag_is_none_of_the_program(name):
    assert program_of(f" {PROGRAMS[name]} ") == Call(PROGRAMS[name])


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("```print(1)```", "print(1)"),
        ("```python print(1)```", "print(1)"),
        (" ``` print(1) ``` ", "print(1)"),
        ("\n        x = 1\n\tprint(x)\n", "x = 1\nprint(x)"),  # eight blanks are a tab
        ("\n  # sum\n  x = 1\n\n  if x:\n    print(x)\n", "# sum\nx = 1\n\nif x:\n  print(x)"),
        (" s = 1\nif s:\n    print(s)", "s = 1\nif s:\n    print(s)"),
        ("\n    s = '''a\nb'''\n    print(s)", "s = '''a\nb'''\nprint(s)"),
        ("# only\n# comments", "# only\n# comments"),
        ("print('```')", "print('```')"),
    ],
)
def test_other_shapes(body, code):
    assert program_of(body) == Call(code)


@pytest.mark.parametrize("body", ["", " ", "\n\n", "\r\n", "```\n```", "```python\n\n```", "~~~\n~~~", "\ufeff"])
def test_no_code_is_said(body):
    assert isinstance(program_of(body), Malformed)

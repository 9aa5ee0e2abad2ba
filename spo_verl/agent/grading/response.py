"""Which part of a response is the model's final text, and the boxed answer in it.

verl decodes a response with ``skip_special_tokens=True``. What is a special token of the tokenizer (``<|im_end|>``)
is gone; ``<think>``, ``<tool_call>`` and ``<tool_response>`` are ordinary added tokens in Qwen3 and stay, as do
``<code>`` and ``<interpreter>``, which are plain text. All functions here take time linear in the text.
"""

from __future__ import annotations

import re

MAX_CHARACTERS = 1_000_000
"""Only the last so many characters of a response are looked at."""

TOOL_OUTPUT = ("interpreter", "tool_response")
CODE = ("code", "tool_call")
THINK, END_OF_THINKING = "<think>", "</think>"

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_SHORT = re.compile(r"-?\w+")  # \boxed 5
_HASHES = re.compile(r"####[ \t]*([^\n]+)")


def without_tools(response: str) -> str:
    """The response without tool output and without closed blocks of code.

    Tool output goes from its opening tag to the *last* closing tag before the next opening one, so that a program
    that prints a closing tag does not speak for the model. Output that is not closed (a response that was cut off)
    goes to the end.
    """
    for tag in TOOL_OUTPUT:
        first, *blocks = response.split(f"<{tag}>")
        closing = f"</{tag}>"
        response = "\n".join([first, *(block.rpartition(closing)[2] if closing in block else "" for block in blocks)])
    for tag in CODE:
        first, *blocks = response.split(f"<{tag}>")
        closing = f"</{tag}>"
        response = "".join(
            [first, *(block.partition(closing)[2] if closing in block else f"<{tag}>{block}" for block in blocks)]
        )
    return response


def after_thinking(text: str) -> str:
    """The text after the last ``</think>``, up to thinking that begins again; before ``<think>`` without an end.

    A text with neither tag is returned whole: the model does not think, or its template opened the thinking in the
    prompt and the response was cut off, which look alike (see the condition ``think_closed_once``).
    """
    return text.rpartition(END_OF_THINKING)[2].partition(THINK)[0]


def final_text(response: str) -> str:
    """The part of a response in which the final answer counts: no tool output, no code, after the thinking."""
    return after_thinking(without_tools(response[-MAX_CHARACTERS:]))


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` (or ``\fbox{...}``); None without one.

    Only the last one counts: one that is not closed, as in a response that was cut off, is no answer, whatever was
    in a box before.
    """
    ends = [found.end() for found in _BOX.finditer(text)]
    if not ends:
        return None
    if not text.startswith("{", ends[-1]):
        short = _SHORT.match(text, ends[-1])
        return short[0] if short else None
    return _braced(text, ends[-1])


def boxes(text: str) -> int:
    """How many boxed answers there are."""
    return sum(1 for _ in _BOX.finditer(text))


def after_hashes(text: str) -> str | None:
    """The line after the last ``####``, the form of GSM8K's own solutions; None without one."""
    found = _HASHES.findall(text)
    return found[-1] if found else None


def _braced(text: str, start: int) -> str | None:
    """The content of the braces that open at ``start``; escaped braces are text."""
    depth, position = 0, start
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1 : position]
        position += 1
    return None

"""Finding the call in what a model wrote: pure functions on text.

A turn holds at most one call: generation halts where a call closes, and :func:`closing_index` finds that place in
tokens, so that what a server generated beyond it can be cut off.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Style = Literal["tool", "code"]

OPENING: dict[Style, str] = {"tool": "<tool_call>", "code": "<code>"}
CLOSING: dict[Style, str] = {"tool": "</tool_call>", "code": "</code>"}

_OPENING_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[^`\n]*(?:\n|\Z)")
_FENCED_LINE = re.compile(r"[ \t]*(`{3,})[ \t]*(?:(?:python[\d.]*|py)[ \t]+)?(.+?)[ \t]*\1[ \t]*\Z", re.IGNORECASE)
_BEHIND_TAG = re.compile(r"[ \t]+(?!```|~~~)\S")
_CODE_LINE = re.compile(r"^([ \t]*)[^\s#]", re.MULTILINE)


@dataclass(frozen=True)
class Call:
    """A call that can be run."""

    code: str


@dataclass(frozen=True)
class Malformed:
    """A call that cannot be run. ``problem`` is the text that the model gets as its answer."""

    problem: str


def closing_index(token_ids: Sequence[int], decode: Callable[[Sequence[int]], str], closing: str) -> int | None:
    """Number of tokens up to and including the one that completes the first ``closing``, or ``None`` without one.

    Text grows with tokens, so the place is found by bisection with about log2(len(token_ids)) decodings. The last
    token may carry characters beyond the closing tag; it was sampled whole, so it stays whole.
    """
    if closing not in decode(token_ids):
        return None
    low, high = 0, len(token_ids)  # the first low tokens do not hold the tag, the first high tokens do
    while high - low > 1:
        middle = (low + high) // 2
        if closing in decode(token_ids[:middle]):
            high = middle
        else:
            low = middle
    return high


def parse_call(text: str, style: Style, tool_name: str) -> Call | Malformed | None:
    """The call that ends a turn.

    Args:
        text: what the model wrote in this turn.
        style: which tags to look for.
        tool_name: the only tool that there is (``style="tool"``).

    Returns:
        ``None`` when no call closes in ``text``; otherwise the code, or what is wrong with the call. The code is
        the text between the first closing tag and the last opening tag before it.
    """
    before, closing, _ = text.partition(CLOSING[style])
    if not closing:
        return None
    _, opening, body = before.rpartition(OPENING[style])
    if not opening:
        return Malformed("A call was closed that was not opened. Nothing was run.")
    return _tool_call(body, tool_name) if style == "tool" else _program(body)


def _program(body: str) -> Call | Malformed:
    body = body.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    code = _dedented(_unfenced(body), _BEHIND_TAG.match(body) is not None)
    if not code.strip():
        return Malformed("The call holds no code. Nothing was run.")
    return Call(code)


def _unfenced(body: str) -> str:
    """``body`` without blank lines around it and without the fence of a Markdown code block.

    The fence may be indented, be of backticks or tildes, name a language, share the last line of the code, or lack one
    of its ends. What is fenced within the code (in a string) stays.
    """
    body = body.strip("\n").rstrip()
    body = re.sub(r"\A(?:[ \t]*\n)+", "", body)
    line = _FENCED_LINE.match(body)
    if line is not None and "\n" not in body:
        return line.group(2)
    opening = _OPENING_FENCE.match(body)
    if opening is not None:
        body = body[opening.end() :]
    # One that closes nothing is no Python either, unless a string ends in it.
    mark = re.escape(opening.group(1)) if opening is not None else "```"
    closing = re.search(rf"(?:\A|\n)[ \t]*{mark}\Z" if opening is None else rf"\n?[ \t]*{mark}[`~]*\Z", body)
    if closing is not None:
        body = body[: closing.start()]
    return body.strip("\n").rstrip()


def _dedented(code: str, behind_tag: bool) -> str:
    """``code`` so that its first statement is not indented, which Python would refuse.

    Each line that has the indentation of the first statement loses it. If the code begins on the line of the tag
    (``<code> x = 1``) and other lines lack that indentation, only the first line loses it.
    """
    first = _CODE_LINE.search(code)
    if first is None or not first.group(1):
        return code.lstrip(" \t")
    indent = first.group(1)
    lines = code.split("\n")
    if behind_tag and not all(line.startswith(indent) for line in lines if _CODE_LINE.match(line)):
        return code.lstrip(" \t")
    return "\n".join(_without(line, indent) for line in lines)


def _without(line: str, indent: str) -> str:
    if line.startswith(indent):
        return line[len(indent) :]
    own = line[: len(line) - len(line.lstrip(" \t"))]
    width, excess = (len(text.expandtabs()) for text in (indent, own))
    return " " * (excess - width) + line[len(own) :] if excess >= width else line


def _tool_call(body: str, tool_name: str) -> Call | Malformed:
    example = f'{{"name": "{tool_name}", "arguments": {{"code": "print(1)"}}}}'
    try:
        call: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        return Malformed(f"The call is not valid JSON ({error}). Nothing was run. Write it as {example}.")
    if not isinstance(call, dict):
        return Malformed(f"The call is not a JSON object. Nothing was run. Write it as {example}.")
    name = call.get("name")
    if name != tool_name:
        return Malformed(f"There is no tool {name!r}. Nothing was run. The only tool is {tool_name!r}.")
    arguments = call.get("arguments")
    if isinstance(arguments, str):  # some models write the arguments as JSON within JSON
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    code = arguments.get("code") if isinstance(arguments, dict) else None
    if not isinstance(code, str):
        return Malformed(f'The arguments lack the text "code". Nothing was run. Write the call as {example}.')
    return _program(code)

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

_FENCE = re.compile(r"\A```[ \t]*(?:python3?|py)?[ \t]*\n(.*?)\n?```\Z", re.DOTALL | re.IGNORECASE)


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
        what stands between the first closing tag and the last opening tag before it.
    """
    before, closing, _ = text.partition(CLOSING[style])
    if not closing:
        return None
    _, opening, body = before.rpartition(OPENING[style])
    if not opening:
        return Malformed("A call was closed that was not opened. Nothing was run.")
    return _tool_call(body, tool_name) if style == "tool" else _program(body)


def _program(body: str) -> Call | Malformed:
    code = body.strip("\n")
    fenced = _FENCE.match(code.strip())
    code = fenced.group(1) if fenced else code
    if not code.strip():
        return Malformed("The call holds no code. Nothing was run.")
    return Call(code)


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

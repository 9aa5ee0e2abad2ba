"""Optional conditions on the form of a response; one that is not met makes the response wrong.

None is on by default: outcome rewards then depend on the answer alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from spo_verl.agent.grading.response import CODE, END_OF_THINKING, TOOL_OUTPUT, boxes, final_text
from spo_verl.errors import SpoConfigError

END_CHARACTERS = 100
"""How far from the end the reference recipe looks for the box (``strict_box_verify`` of verl's math_dapo)."""


def _think_closed_once(response: str) -> bool:
    return response.count(END_OF_THINKING) == 1


def _text_after_thinking(response: str) -> bool:
    after = response.partition(END_OF_THINKING)[2]
    return not any(tag in after for tag in ("<code>", "<interpreter>"))


def _one_box(response: str) -> bool:
    return boxes(final_text(response)) == 1


def _box_near_end(response: str) -> bool:
    return boxes(response[-END_CHARACTERS:]) > 0


def _box_after_tools(response: str) -> bool:
    last = max(response.rfind(f"</{tag}>") for tag in TOOL_OUTPUT)
    return boxes(response[last + 1 :]) > 0


def _blocks_closed(response: str) -> bool:
    return all(response.count(f"<{tag}>") == response.count(f"</{tag}>") for tag in (*CODE, *TOOL_OUTPUT))


CONDITIONS: dict[str, Callable[[str], bool]] = {
    "think_closed_once": _think_closed_once,
    "text_after_thinking": _text_after_thinking,
    "box_near_end": _box_near_end,
    "one_box": _one_box,
    "box_after_tools": _box_after_tools,
    "blocks_closed": _blocks_closed,
}
"""Name -> whether a response meets the condition. ``docs/howto-rewards.md`` says what each is."""

REFERENCE = ("think_closed_once", "text_after_thinking", "box_near_end")
"""The conditions of the reference recipe, under the name ``reference``."""


def chosen(names: str | Iterable[str] | None) -> tuple[str, ...]:
    """The names of conditions, ``reference`` spelled out.

    Raises:
        SpoConfigError: there is no condition of such a name.
    """
    given = [] if names is None else names.split(",") if isinstance(names, str) else [str(name) for name in names]
    found: list[str] = []
    for name in (one.strip() for one in given):
        found += REFERENCE if name == "reference" else [name] if name else []
    unknown = [name for name in found if name not in CONDITIONS]
    if unknown:
        raise SpoConfigError(
            f"reward_kwargs.conditions: there is no condition {', '.join(unknown)}; "
            f"choose from reference, {', '.join(CONDITIONS)}"
        )
    return tuple(dict.fromkeys(found))


def all_met(response: str, names: Iterable[str]) -> bool:
    """Whether a response meets all of these conditions."""
    return all(CONDITIONS[name](response) for name in names)

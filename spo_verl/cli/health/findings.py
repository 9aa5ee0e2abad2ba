"""One line of the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        group: its heading.
        name: what was looked at.
        status: ``ok``; ``warn``: works, or may not matter here; ``fail``: an SPO run would not work.
        found: what is there.
        fix: what to do; empty where there is nothing to do.
    """

    group: str
    name: str
    status: Status
    found: str
    fix: str = ""

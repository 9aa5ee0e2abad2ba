"""Order of the tests, and no limit of time for an example: a busy machine is no failure."""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("spo", deadline=None)
settings.load_profile("spo")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: several processes then end at about the same time."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)

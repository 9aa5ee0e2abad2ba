"""Log lines of the plugin inside verl's driver process."""

from __future__ import annotations

import logging
import os
import sys


def configure_logging() -> None:
    """Give the plugin's loggers a handler of their own, at verl's level (``VERL_LOGGING_LEVEL``, INFO).

    Libraries that are imported while the trainer starts rearrange the root logger; verl shields its own loggers
    the same way.
    """
    level = os.getenv("VERL_LOGGING_LEVEL", "INFO")
    handler = logging.StreamHandler(stream=sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s:%(asctime)s:%(message)s"))
    package = logging.getLogger("spo_verl")
    package.handlers = [handler]
    package.setLevel(level)
    package.propagate = False

"""Functions of the user's that settings name as ``module:function``."""

from __future__ import annotations

import importlib
from typing import Any

from spo_verl.errors import SpoConfigError


def load_function(setting: str, name: str, example: str) -> Any:
    """The function that ``module:function`` names.

    Raises:
        SpoConfigError: there is no such module or function, or it cannot be called.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
        if not callable(found):
            raise ValueError("it is no function")
    except Exception as error:  # importing a module of the user's may raise anything
        raise SpoConfigError(
            f"{setting}={name!r} cannot be loaded ({type(error).__name__}: {error}): name a function as "
            f"module:function, of a module that can be imported where verl's task runner runs, e.g. {example}."
        ) from error
    return found

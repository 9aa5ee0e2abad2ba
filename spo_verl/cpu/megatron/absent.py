"""Any name of Transformer Engine or triton, for modules that need names in order to be imported."""

from __future__ import annotations

from typing import Any


class _Name(type):
    """A class whose attributes are such classes too."""

    def __getattr__(cls, name: str) -> type:
        return __getattr__(name)


class _Absent(metaclass=_Name):
    def __new__(cls, *arguments: Any, **_named: Any) -> Any:
        if cls.__name__[0].islower():  # a decorator, such as triton.jit, with arguments of its own or without
            return arguments[0] if arguments and callable(arguments[0]) else cls
        raise NotImplementedError(f"{cls.__name__} of Transformer Engine or triton: there is none on a CPU.")


def __getattr__(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Name(name, (_Absent,), {})

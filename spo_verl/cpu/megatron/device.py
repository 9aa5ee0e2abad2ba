"""What Megatron finds under ``torch.cuda`` where there is none: the CPU, where every call has ended when it returns."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch

from spo_verl.cpu.platform import build_device_module

globals().update({name: value for name, value in vars(build_device_module()).items() if not name.startswith("_")})


def _nothing(*_args: Any, **_kwargs: Any) -> None:
    return None


class Stream(torch.cpu.Stream):  # type: ignore[misc]
    """The one order in which everything happens."""

    synchronize = wait_stream = wait_event = _nothing

    def record_event(self, event: Any = None) -> Any:
        return event or Event()

    def query(self) -> bool:
        return True

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_error: Any) -> None:
        return None


class Event:
    """A point in it, which has passed."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    record = wait = synchronize = _nothing

    def query(self) -> bool:
        return True

    def elapsed_time(self, _other: Event) -> float:
        return 0.0


class CUDAGraph:
    """A name in annotations: nothing is captured."""


_STREAM = Stream()


def is_available() -> bool:
    """No: Megatron then takes no path that is for CUDA alone."""
    return False


def current_device() -> torch.device:
    return torch.device("cpu")


def current_stream(*_args: Any) -> Stream:
    return _STREAM


default_stream = current_stream
set_stream = _nothing


def device(_index: Any) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


stream = device


def device_count() -> int:
    return 1


def memory_stats(*_args: Any) -> dict[str, int]:
    return {}


def is_current_stream_capturing() -> bool:
    return False


def get_device_capability(*_args: Any) -> tuple[int, int]:
    return 0, 0


def _lazy_init() -> None:
    return None


def _lazy_call(call: Any, **_kwargs: Any) -> None:
    call()


def get_rng_state(*_args: Any, **_kwargs: Any) -> torch.Tensor:
    return torch.get_rng_state()


random = SimpleNamespace(get_rng_state=get_rng_state)
default_generators: Any = defaultdict(lambda: torch.default_generator)
nvtx = SimpleNamespace(range_push=_nothing, range_pop=_nothing, mark=_nothing, range=device)
amp = SimpleNamespace(custom_fwd=torch.cuda.amp.custom_fwd, custom_bwd=torch.cuda.amp.custom_bwd)
OutOfMemoryError = torch.OutOfMemoryError
FloatTensor, HalfTensor, BFloat16Tensor = torch.FloatTensor, torch.HalfTensor, torch.BFloat16Tensor

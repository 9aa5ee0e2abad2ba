"""The logger of ``trainer_separate_async``."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from spo_verl.cpu.registry import workaround


class FlushTolerantLogger:
    """A logger whose ``info`` accepts ``print``'s ``flush``; everything else is the wrapped logger's."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def info(self, message: object, *args: Any, flush: bool = False, **kwargs: Any) -> None:
        self._logger.info(message, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)


@workaround("log-flush", target="verl.trainer.ppo.v1.trainer_separate_async:logger.info")
def accept_flush(module: ModuleType) -> None:
    """Stock defect on any hardware: with ``hybrid_engine=False`` the trainer calls ``logger.info(..., flush=True)``."""
    module.logger = FlushTolerantLogger(module.logger)  # type: ignore[attr-defined]

"""The two repairs for ``separate_async``, on stand-ins with verl's behaviour."""

from __future__ import annotations

import logging
from types import ModuleType

import pytest
import torch

from spo_verl.cpu.old_policy import copy_when_saving
from spo_verl.cpu.trainer_log import FlushTolerantLogger, accept_flush


def stock_module() -> ModuleType:
    module = ModuleType("fsdp_utils")

    def fsdp2_sharded_save_to_cpu(model):
        return {name: (tensor.detach().cpu(), "spec") for name, tensor in model.named_parameters()}, "spec"

    module.fsdp2_sharded_save_to_cpu = fsdp2_sharded_save_to_cpu  # type: ignore[attr-defined]
    return module


def test_the_saved_policy_does_not_follow_the_live_one() -> None:
    model, module = torch.nn.Linear(2, 1, bias=False), stock_module()
    stock, _ = module.fsdp2_sharded_save_to_cpu(model)
    copy_when_saving(module)
    saved, spec = module.fsdp2_sharded_save_to_cpu(model)
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    assert torch.equal(stock["weight"][0], model.weight)  # the defect: the "saved" policy moved along
    assert torch.equal(saved["weight"][0], before)
    assert saved["weight"][1] == spec == "spec"


def test_the_logger_drops_flush_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("separate_async_stand_in")
    logger.setLevel(logging.INFO)  # a level that is off never looks at its arguments
    with pytest.raises(TypeError):
        logger.info("stock", flush=True)  # type: ignore[call-arg]
    module = ModuleType("trainer_separate_async")
    module.logger = logger  # type: ignore[attr-defined]
    accept_flush(module)
    assert isinstance(module.logger, FlushTolerantLogger)
    with caplog.at_level(logging.INFO, logger=logger.name):
        module.logger.info("replicas: %d", 3, flush=True)
        module.logger.warning("as before")
    assert caplog.messages == ["replicas: 3", "as before"]

"""Megatron's distributed optimizer over torch's AdamW, which takes the place of Transformer Engine's on a CPU."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import wrapt

from spo_verl.cpu.registry import workaround

_MODULE = "megatron.core.optimizer.distrib_optimizer"
_OPTIMIZER = f"{_MODULE}:DistributedOptimizer"


@workaround("shards-in-place", target=f"{_OPTIMIZER}._set_main_param_and_optimizer_states", parameters=("tensors",))
def load_in_place(module: ModuleType) -> None:
    """With fp32 weights the shards are views of the weights: loading them in place must not enter a graph."""
    original = module.DistributedOptimizer._set_main_param_and_optimizer_states
    module.DistributedOptimizer._set_main_param_and_optimizer_states = torch.no_grad()(original)


def make_state(optimizer: Any) -> None:
    """Give every parameter that has none yet the state of before the first step, without making a step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.numel() and not optimizer.state[parameter]:
                optimizer.state[parameter] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


@workaround("adam-step", target=f"{_OPTIMIZER}.state_dict")
def state_before_its_step(module: ModuleType) -> None:
    """Megatron asks for the step of the state before there is any."""

    def with_state(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        make_state(instance.optimizer)
        return wrapped(*args, **kwargs)

    wrapt.wrap_function_wrapper(module, "DistributedOptimizer.state_dict", with_state)


@workaround("adam-step", target=f"{_OPTIMIZER}._init_optimizer_states_with_dummy_values")
def state_without_a_step(module: ModuleType) -> None:
    """Megatron makes state by a step with zero gradients, which decays the weights."""
    module.DistributedOptimizer._init_optimizer_states_with_dummy_values = lambda self: make_state(self.optimizer)


@workaround("adam-step", target=f"{_OPTIMIZER}.load_state_dict", parameters=("state_dict",))
def step_of_each(module: ModuleType) -> None:
    """Loading gives all parameters one tensor for the step, which every one of them then counts up."""

    def with_steps(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        wrapped(*args, **kwargs)
        [step] = {group["step"] for group in (args or tuple(kwargs.values()))[0]["optimizer"]["param_groups"]}
        for state in instance.optimizer.state.values():
            state["step"] = torch.tensor(float(step))

    wrapt.wrap_function_wrapper(module, "DistributedOptimizer.load_state_dict", with_steps)

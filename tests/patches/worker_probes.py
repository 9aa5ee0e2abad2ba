"""Probes of the worker processes: saved policies, process groups, sockets, log lines."""

from __future__ import annotations

import ast
import logging
import os
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from tests.patches.applying import VERL
from tests.patches.overlay import outcome, source
from tests.support.local_ray import start_ray


def old_policy(folder: Path) -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor
    from verl.utils.fsdp_utils import fsdp2_sharded_load_from_cpu, fsdp2_sharded_save_to_cpu

    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 1), rank=0, world_size=1)
    model = torch.nn.Linear(2, 1)
    shard = distribute_tensor(torch.tensor([[1.0, 2.0]]), init_device_mesh("cpu", (1,)), [Shard(0)])
    model.weight, model.bias = torch.nn.Parameter(shard), torch.nn.Parameter(torch.tensor([3.0]))
    saved, spec = fsdp2_sharded_save_to_cpu(model)
    with torch.no_grad():
        model.weight._local_tensor.add_(10.0)
        model.bias.add_(10.0)
    report = {
        "live": [*model.weight._local_tensor.flatten().tolist(), *model.bias.tolist()],
        "saved": [*saved["weight"][0].flatten().tolist(), *saved["bias"][0].tolist()],
    }
    fsdp2_sharded_load_from_cpu(model, saved, spec)
    report["restored"] = [*model.weight._local_tensor.flatten().tolist(), *model.bias.tolist()]
    dist.destroy_process_group()
    return report


class Moved:
    """Data of a parameter that only knows where it is."""

    def __init__(self, device: str) -> None:
        self.device = device

    def to(self, device: str, non_blocking: bool = False) -> Moved:
        return Moved(device)


class Wrapped:
    """Megatron's DistributedDataParallel with one buffer, as far as verl's functions look at it."""

    def __init__(self, flat: torch.Tensor | None, *parameters: Any) -> None:
        self.buffers = [SimpleNamespace(param_data=flat, params=list(parameters), grad_data=torch.zeros(2))]
        self.expert_parallel_buffers: list[Any] = []
        self.module = SimpleNamespace(parameters=lambda: list(parameters))

    def modules(self) -> list[Any]:
        return []


def parameters() -> dict[str, Any]:
    """The functions that move Megatron's weights, with and without a flat buffer; Megatron is not imported."""
    names = {
        f"{verb}_megatron_model_{way}"
        for verb, way in (("load", "to_gpu"), ("offload", "to_cpu"), ("copy", "to_cpu"), ("restore", "from_cpu"))
    }
    tree = ast.parse(source("verl/utils/megatron_utils.py"))
    functions = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name in names | {"_clear_te_fp8_weight_workspaces"}
    ]
    assert len(functions) == 5
    scope: dict[str, Any] = {
        "torch": torch, "DDP": Wrapped, "get_device_id": lambda: "device 0", "logger": logging.getLogger("probe"),
        "get_torch_device": lambda: SimpleNamespace(empty_cache=lambda: None),
    }  # fmt: skip
    exec("\n".join(map(ast.unparse, functions)), scope)

    def moved(function: str, device: str) -> str:
        parameter = SimpleNamespace(data=Moved(device), requires_grad=True)
        scope[function]([Wrapped(None, parameter)])
        return parameter.data.device

    def restored(flat: bool) -> list[float]:
        data = torch.tensor([1.0, 2.0])
        chunk = Wrapped(data if flat else None, torch.nn.Parameter(data))
        saved = scope["copy_megatron_model_to_cpu"]([chunk])
        data.add_(10.0)
        scope["restore_megatron_model_from_cpu"]([chunk], saved)
        return data.tolist()

    pin, torch.Tensor.pin_memory = torch.Tensor.pin_memory, lambda self: self  # needs an accelerator
    try:
        return {
            "load": outcome(lambda: moved("load_megatron_model_to_gpu", "cpu")),
            "offload": outcome(lambda: moved("offload_megatron_model_to_cpu", "device 0")),
            "copy": outcome(lambda: restored(flat=False)),
            "copy of a flat buffer": outcome(lambda: restored(flat=True)),
        }
    finally:
        torch.Tensor.pin_memory = pin


def rotary_base() -> dict[str, Any]:
    """What verl's Megatron engine sets on a provider of Megatron-Bridge, next to its own settings."""
    from transformers import Qwen3Config

    tree = ast.parse(source("verl/workers/engine/megatron/transformer_impl.py"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "_rope_overrides"]
    [build] = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "_build_tf_config")
    statements = [
        node
        for node in ast.walk(build)
        if (isinstance(node, ast.Expr) and "provider_overrides.update" in ast.unparse(node))
        or (isinstance(node, ast.For) and "override_transformer_config.items()" in ast.unparse(node.iter))
    ]
    statements.sort(key=lambda node: node.lineno)
    qwen, absent = Qwen3Config(rope_theta=1e6), SimpleNamespace(rope_parameters=None)

    def given(model: Any, base: Any = 10_000, **overridden: float) -> dict[str, float]:
        scope: dict[str, Any] = {
            "Any": Any, "provider": SimpleNamespace(rotary_base=base), "provider_overrides": {},
            "override_transformer_config": overridden,
            "self": SimpleNamespace(model_config=SimpleNamespace(hf_config=model)),
        }  # fmt: skip
        exec("\n".join(map(ast.unparse, [*functions, *statements])), scope)
        return scope["provider_overrides"]

    return {
        "moved": given(qwen),
        "overridden": given(qwen, rotary_base=7.0),
        "a pair": given(qwen, base=(1, 2)),
        "attribute": given(SimpleNamespace(rope_theta=3.0, rope_parameters={"rope_theta": 4.0})),
        "without RoPE": given(absent),
        "by kind of attention": given(SimpleNamespace(rope_parameters={"full_attention": {"rope_theta": 4.0}})),
    }


def process_group(folder: Path) -> dict[str, Any]:
    from verl.utils import distributed

    def start(device: str, backend: str) -> str:
        distributed.get_device_name, distributed.get_nccl_backend = lambda: device, lambda: backend
        os.environ.update(RANK="0", WORLD_SIZE="1", DIST_INIT_METHOD=f"file://{folder}/{device}")
        distributed.initialize_global_process_group_ray()
        total = torch.tensor([2.0])
        dist.all_reduce(total)
        dist.destroy_process_group()
        return f"sum {total.item()}"

    def asked_for(device: str, backend: str) -> str:
        real, given = dist.init_process_group, []
        distributed.get_device_name, distributed.get_nccl_backend = lambda: device, lambda: backend
        dist.init_process_group = lambda backend, **_: given.append(backend)
        try:
            distributed.initialize_global_process_group_ray()
        finally:
            dist.init_process_group = real
        return given[0]

    return {"cpu": outcome(lambda: start("cpu", "gloo")), "cuda": asked_for("cuda", "nccl")}


def sockets() -> dict[str, Any]:
    """The socket's name on both sides, in two local Ray clusters one after the other."""
    import ray
    from verl.workers.rollout.vllm_rollout import bucketed_weight_transfer, vllm_rollout
    from verl.workers.rollout.vllm_rollout import utils as vllm_utils

    server = ast.parse(source("verl/workers/rollout/vllm_rollout/vllm_async_server.py"))
    forwarded = [  # the line of the server's constructor that hands the name to vLLM's processes
        node
        for node in ast.walk(server)
        if isinstance(node, ast.Assign) and re.match(r"os.environ\['VERL_(RAY|ZMQ)_", ast.unparse(node))
    ]
    assert len(forwarded) == 1
    scope = {"os": os, "ray": ray, "get_zmq_namespace": getattr(bucketed_weight_transfer, "get_zmq_namespace", None)}
    os.environ.update(RANK="1", RAY_LOCAL_WORLD_SIZE="2", VERL_REPLICA_RANK="1")
    vllm_rollout.BaseRollout.__init__ = lambda self, given, *_: setattr(self, "config", given)
    sizes = SimpleNamespace(
        tensor_model_parallel_size=1, data_parallel_size=1, pipeline_model_parallel_size=1, layered_summon=False
    )
    clusters = []
    for _ in range(2):
        start_ray(num_cpus=1, logging_level="ERROR")
        try:
            adapter = object.__new__(type("Sender", (vllm_rollout.ServerAdapter,), {"__abstractmethods__": set()}))
            vllm_rollout.ServerAdapter.__init__(adapter, sizes, None, None)
            exec(ast.unparse(forwarded[0]), scope)
            receiver = object.__new__(vllm_utils.vLLMColocateWorkerExtension)
            receiver.model_runner, receiver.local_rank = None, 0
            names = [adapter.zmq_handle, receiver._get_zmq_handle()]

            def ids() -> list[str]:
                import ray

                return [ray.get_runtime_context().get_job_id(), ray.get_runtime_context().get_node_id()]

            clusters.append({"names": names, "elsewhere on the node": ray.get(ray.remote(ids).remote())})
        finally:
            ray.shutdown()
    return {"clusters": clusters}


def log_lines() -> dict[str, Any]:
    """Calls of a logger with an argument of ``print`` in the whole package, and the one of the trainer carried out."""
    calls = []
    verbs = {"debug", "info", "warning", "error", "critical", "exception", "log"}
    for file in sorted(VERL.rglob("*.py")):
        name = str(file.relative_to(VERL.parent))
        text = source(name)
        for node in ast.walk(ast.parse(text)) if "flush" in text else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in verbs:
                calls += [name for keyword in node.keywords if keyword.arg == "flush"]
    tree = ast.parse(source("verl/trainer/ppo/v1/trainer_separate_async.py"))
    (call,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and "hybrid replicas disabled" in ast.unparse(node)
    )
    logger = logging.getLogger("probe")
    logger.setLevel("INFO")
    manager = SimpleNamespace(get_replicas=lambda: ["a", "b"])
    scope = {"logger": logger, "self": SimpleNamespace(standalone_server_manager=manager)}
    with tempfile.TemporaryFile("w+") as lines:
        logger.addHandler(logging.StreamHandler(lines))
        said = outcome(lambda: eval(ast.unparse(call), scope))
        lines.seek(0)
        return {"calls": calls, "result": said, "line": lines.read()}

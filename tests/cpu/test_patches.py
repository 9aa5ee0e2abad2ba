"""``patches/`` and the list in code say the same, and every target is in the installed packages.

The installed packages are looked at in one child process with ``VERL_PLATFORM=cpu``, which imports every target module
with the workarounds active; the tests read its report.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from spo_verl.cpu import workarounds

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "patches" / "README.md"


def sections() -> dict[str, str]:
    """Name of a workaround -> its section of the page."""
    text = PAGE.read_text().partition("## Workarounds\n")[2]
    return dict(re.findall(r"^### ([\w-]+)\n(.+?)(?=^##|\Z)", text, flags=re.MULTILINE | re.DOTALL))


def test_every_workaround_has_a_section_and_the_other_way_round() -> None:
    names = re.findall(r"^### (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    assert sorted(names) == sorted({entry.name for entry in workarounds()})


@pytest.mark.parametrize("name", sorted(sections()))
def test_a_section_states_the_targets_of_the_code(name: str) -> None:
    changes, text = re.fullmatch(r"\n(`[^\n]+`)\n\n(.+)", sections()[name], flags=re.DOTALL).groups()
    targets = re.findall(r"`([^`]+)`", changes)
    assert targets == [entry.target for entry in workarounds() if entry.name == name]
    reason, *end = " ".join(text.split()).split(" *Until* ")  # without: until the package does the same
    assert len(end) <= 1
    assert all(len(part) >= 10 for part in (reason, *end))


REPORT = textwrap.dedent(
    """
    import asyncio, importlib, inspect, json, os, sys, tempfile
    os.environ["RAY_RAYLET_PID"] = "4711"
    from spo_verl import cpu
    cpu.activate()
    cpu.activate()  # a second call changes nothing
    import verl.workers.engine
    early = sorted(name for name in sys.modules if name.startswith("megatron"))
    from spo_verl.cpu.registry import check_target
    checked = []
    for entry in cpu.workarounds():
        check_target(entry)
        checked.append([entry.name, entry.target])
    # A workaround keeps the signature of what it replaces: the trainer compares them at its start.
    from spo_verl.training import seams
    seams.require()

    from verl.plugin.platform import get_platform
    from verl.utils.device import get_device_id, get_device_name, get_torch_device, is_support_ipc
    from verl.workers.engine.base import EngineRegistry
    from verl.workers.engine.fsdp import transformer_impl
    from verl.workers.engine.megatron import transformer_impl as megatron
    from verl.utils.megatron_utils import copy_megatron_model_to_cpu
    from verl.workers.config import McoreEngineConfig
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync
    from verl.trainer.ppo.v1 import trainer_separate_async
    from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
    from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver, BucketedWeightSender
    from spo_verl.cpu import weight_transfer
    import vllm._custom_ops

    def without_a_peer(action):
        try:
            action()
        except Exception as error:
            return [type(error).__name__, str(error)]

    weight_transfer.TRANSFER_SECONDS = 0.5
    with tempfile.TemporaryDirectory() as folder:
        alone = [
            without_a_peer(lambda: asyncio.run(
                BucketedWeightSender(f"ipc://{folder}/sender", 1, use_shm=True).async_send_weights(iter([])))),
            without_a_peer(lambda: BucketedWeightReceiver(
                f"ipc://{folder}/receiver", "cpu", use_shm=True).receive_weights(lambda weights, is_last: None)),
        ]

    # Experts in fp32 on a processor with AMX, in layers of a size that the grouped kernels would widen.
    import torch
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation
    from vllm.model_executor.layers.fused_moe.cpu_fused_moe import CPUFusedMOE
    torch.cpu._is_amx_tile_supported = lambda: True
    if not hasattr(torch.ops._C, "prepack_moe_weight"):  # vLLM's library for AVX2 has no grouped kernels
        torch.library.define("_C::prepack_moe_weight", "(Tensor weight, str isa) -> Tensor")
    layer = torch.nn.Module()
    layer.activation = MoEActivation.SILU
    layer.w13_weight = torch.nn.Parameter(torch.zeros(2, 2 * 48, 64), requires_grad=False)
    layer.w2_weight = torch.nn.Parameter(torch.zeros(2, 64, 48), requires_grad=False)
    experts = CPUFusedMOE(layer)
    for weight in (layer.w13_weight, layer.w2_weight):  # an update, in place
        weight.copy_(torch.randn(weight.shape))
    token = torch.randn(1, 64)
    weight, chosen = torch.tensor([[0.25, 0.75]]), torch.tensor([[1, 0]])
    found = experts.forward_method(layer, token, weight, chosen, layer.activation, 2)
    gate, up = (token @ layer.w13_weight.transpose(1, 2)).chunk(2, -1)
    each = (torch.nn.functional.silu(gate) * up) @ layer.w2_weight.transpose(1, 2)
    expected = 0.25 * each[1] + 0.75 * each[0]

    arguments = dict(trainer_mode="sync", trainer_config={}, max_off_policy_threshold=8,
                     max_off_policy_strategy="drop", sampler_kwargs={})
    os.environ["VERL_RAY_JOB_ID"] = "01000000"
    extension = object.__new__(vLLMColocateWorkerExtension)
    extension.model_runner, extension.local_rank = None, 0
    trainer_separate_async.logger.info("a line with %s", "arguments", flush=True)
    import torch
    layer = torch.nn.Linear(2, 2)
    copied = copy_megatron_model_to_cpu([layer])["model_chunk_0"]["model_state"]["weight"]["data"]
    same = torch.equal(copied, layer.weight)
    with torch.no_grad():
        layer.weight.add_(1)
    json.dump({
        "checked": checked,
        "early": early,
        "megatron": [EngineRegistry.get_engine_cls(kind, "megatron").__name__
                     for kind in ("language_model", "value_model")],
        "fp32": [McoreEngineConfig(dtype="float32").dtype, without_a_peer(lambda: McoreEngineConfig(dtype="int8"))[0]],
        "copied": [same, torch.equal(copied, layer.weight), torch.equal(copied + 1, layer.weight)],
        "offloaded": [megatron.offload_megatron_model_to_cpu([None]), megatron.offload_megatron_optimizer(None)],
        "platform": type(get_platform()).__name__,
        "device": [get_device_name(), str(get_device_id()), f"{get_device_name()}:{get_device_id()}"],
        "ipc": is_support_ipc(),
        "engine": EngineRegistry.get_engine_cls("language_model", "fsdp2").__name__,
        "offload": repr(transformer_impl.CPUOffloadPolicy(pin_memory=True)),
        "poll": [ReplayBuffer(**arguments).poll_interval, ReplayBufferAsync(**arguments).poll_interval,
                 ReplayBuffer(**arguments, poll_interval=5.0).poll_interval,
                 ReplayBuffer(*arguments.values(), 7.0).poll_interval],
        "onednn": vllm._custom_ops._supports_onednn,
        "experts": [float((found - expected).abs().max()), float(expected.abs().max())],
        "socket": extension._get_zmq_handle(),
        "alone": alone,
        "environment": {name: os.environ.get(name) for name in ("TORCHDYNAMO_DISABLE", "TQ_NUM_THREADS")},
    }, open(sys.argv[1], "w"))
    """
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("patches") / "report.json"
    environment = {**os.environ, "VERL_PLATFORM": "cpu", "TQ_NUM_THREADS": "3"}
    environment.pop("TORCHDYNAMO_DISABLE", None)
    done = subprocess.run(
        [sys.executable, "-c", REPORT, str(out)], env=environment, capture_output=True, text=True, timeout=1100
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


def test_every_target_is_as_expected_in_the_installed_packages(report: dict) -> None:
    assert sorted(map(tuple, report["checked"])) == sorted((entry.name, entry.target) for entry in workarounds())


def test_platform_and_device(report: dict) -> None:
    assert report["platform"] == "PlatformCPU"
    assert report["device"] == ["cpu", "cpu", "cpu:0"]
    assert report["ipc"] is False


def test_fsdp2_is_offered_and_does_not_offload(report: dict) -> None:
    assert report["engine"] == "FSDPEngineWithLMHead"
    assert report["offload"] == "None"


def test_megatron_is_imported_when_it_is_asked_for(report: dict) -> None:
    assert report["early"] == []
    assert report["megatron"] == ["MegatronEngineWithLMHead", "MegatronEngineWithValueHead"]


def test_megatron_trains_in_fp32_and_pins_no_memory(report: dict) -> None:
    assert report["fp32"] == ["float32", "AssertionError"]
    assert report["copied"] == [True, False, True]
    assert report["offloaded"] == [None, None]


def test_replay_buffers_poll_often_unless_told_otherwise(report: dict) -> None:
    assert report["poll"] == [0.1, 0.1, 5.0, 7.0]


def test_vllm_keeps_its_weights_and_names_a_socket_of_its_own(report: dict) -> None:
    assert report["onednn"] is False
    assert report["socket"] == "ipc:///tmp/rl-colocate-zmq-4711-01000000-replica-0-rank-0.sock"


def test_experts_of_vllm_compute_with_the_weights_of_an_update(report: dict) -> None:
    difference, largest = report["experts"]
    assert difference < 1e-6 * largest


def test_an_end_of_a_transfer_into_vllm_that_is_alone_fails(report: dict) -> None:
    assert [kind for kind, _ in report["alone"]] == ["WeightTransferError"] * 2
    assert all("silent for 0.5 s" in message for _, message in report["alone"])


def test_environment_defaults_give_way_to_what_is_set(report: dict) -> None:
    assert report["environment"] == {"TORCHDYNAMO_DISABLE": "1", "TQ_NUM_THREADS": "3"}


def test_two_runs_on_one_machine_name_different_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    from spo_verl.cpu.rollout import unique_socket
    from spo_verl.errors import SpoStateError

    stock = "ipc:///tmp/rl-colocate-zmq-01000000-replica-0-rank-0.sock"
    names = []
    for raylet in ("100", "200"):
        monkeypatch.setenv("RAY_RAYLET_PID", raylet)
        names.append(unique_socket(stock))
        assert unique_socket(names[-1]) == names[-1]  # naming twice adds nothing
    assert len({stock, *names}) == 3
    monkeypatch.delenv("RAY_RAYLET_PID")
    with pytest.raises(SpoStateError, match="must be started by Ray"):
        unique_socket(stock)
    monkeypatch.setenv("RAY_RAYLET_PID", "100")
    with pytest.raises(SpoStateError, match="does not contain"):
        unique_socket("ipc:///tmp/another.sock")

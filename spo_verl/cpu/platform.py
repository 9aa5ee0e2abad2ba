"""verl's platform class for a CPU: what it answers where other hardware has a device."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from verl.plugin.platform import PlatformBase

from spo_verl.cpu.registry import workaround


class CpuDeviceId(str):
    """The device ``cpu`` where verl expects a device index.

    verl passes the index to ``tensor.to`` and ``torch.device``, where an int would mean an accelerator, and writes
    it into ``f"{device_name}:{index}"``, which has to read ``cpu:0``. So it is the text ``cpu`` that formats as 0.
    """

    def __format__(self, spec: str) -> str:
        return format("0", spec)


def _nothing(*_args: Any, **_kwargs: Any) -> None:
    return None


def _no_bytes(*_args: Any, **_kwargs: Any) -> int:
    return 0


def _peak_bytes(*_args: Any, **_kwargs: Any) -> int:
    """Peak resident memory of this process (Linux reports KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _free_and_total_bytes(*_args: Any, **_kwargs: Any) -> tuple[int, int]:
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page


def build_device_module() -> ModuleType:
    """``torch.cpu`` plus the calls that verl makes on ``torch.cuda`` and its kin without asking first.

    Memory "allocated" is 0, since nothing is on a device; its maximum is the peak resident size of the process.
    """
    module = ModuleType("spo_verl.cpu.device")
    answers: dict[str, Any] = {
        **{name: getattr(torch.cpu, name) for name in dir(torch.cpu) if not name.startswith("_")},
        **dict.fromkeys(
            (
                "empty_cache",
                "ipc_collect",
                "reset_peak_memory_stats",
                "reset_accumulated_memory_stats",
                "set_per_process_memory_fraction",
                "set_device",
                "synchronize",
            ),
            _nothing,
        ),
        **dict.fromkeys(("memory_allocated", "memory_reserved"), _no_bytes),
        **dict.fromkeys(("max_memory_allocated", "max_memory_reserved"), _peak_bytes),
        "mem_get_info": _free_and_total_bytes,
        "get_rng_state": lambda *_args: torch.get_rng_state(),
        "set_rng_state": lambda state, *_args: torch.set_rng_state(state),
        "manual_seed": torch.manual_seed,
        "manual_seed_all": torch.manual_seed,
        "get_device_name": lambda *_args: "CPU",
        "is_available": lambda: True,
    }
    for name, answer in answers.items():
        setattr(module, name, answer)
    return module


_DEVICE_MODULE = build_device_module()


class PlatformCPU(PlatformBase):
    """One logical device per process; the processes of a run are placed by Ray's logical ``GPU`` resource."""

    device_name = "cpu"
    vendor_name = "cpu"

    @property
    @workaround("device-module", target="verl.utils.device:get_torch_device", applied="platform")
    def device_module(self) -> ModuleType:
        return _DEVICE_MODULE

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        # Never chosen by auto-detection: a GPU machine whose driver is broken must not silently train on its CPU.
        return False

    @workaround("device-id", target="verl.utils.device:get_device_id", applied="platform")
    def current_device(self) -> CpuDeviceId:
        return CpuDeviceId("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        return None

    def synchronize(self, device_index: int | None = None) -> None:
        return None

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        return None

    def empty_cache(self) -> None:
        return None

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @workaround(
        "ray-slots",
        target="verl.plugin.platform.platform_base:PlatformBase.ray_resource_name",
        applied="platform",
    )
    def ray_resource_name(self) -> str:
        # Ray knows "GPU" without a custom resource, and takes a number of them that is only a number of slots.
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        # Weights then go through shared memory.
        return False

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        return None

    def profiler_stop(self) -> None:
        return None

    def cudart(self) -> None:
        return None


@workaround(
    "cpu-platform",
    target="verl.plugin.platform.platform_manager:PlatformRegistry.register",
    parameters=("platform",),
)
def register_platform(module: ModuleType) -> None:
    """verl ships platforms for CUDA, ROCm and NPU."""
    module.PlatformRegistry.register(platform="cpu")(PlatformCPU)

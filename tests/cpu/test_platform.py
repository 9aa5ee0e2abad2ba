"""What the CPU platform answers. The class is used directly; nothing is activated in the test process."""

from __future__ import annotations

import os

import pytest
import torch

platform_module = pytest.importorskip("spo_verl.cpu.platform")


@pytest.fixture(scope="module")
def platform():
    return platform_module.PlatformCPU()


def test_the_device_id_is_a_device_and_an_index(platform) -> None:
    device = platform.current_device()
    assert torch.ones(2).to(device).device == torch.device("cpu")
    assert torch.device(device) == torch.device("cpu")
    assert torch.device(f"cpu:{device}") == torch.device("cpu:0")
    assert torch.empty(0, device=device).device.type == "cpu"


def test_it_is_never_found_by_auto_detection(platform) -> None:
    assert platform.is_available()
    assert not platform.is_platform_available(use_smi_check=True)


def test_ray_counts_slots_under_the_name_gpu(platform) -> None:
    assert platform.ray_resource_name() == "GPU"
    assert platform.ray_resource_options(2) == {"num_gpus": 2}
    assert platform.communication_backend_name() == "gloo"
    assert platform.device_count() == 1
    assert not platform.is_ipc_supported()


CALLS_OF_VERL = (
    "empty_cache",
    "ipc_collect",
    "synchronize",
    "reset_peak_memory_stats",
    "current_stream",
    "stream",
    "device_count",
)


@pytest.mark.parametrize("name", CALLS_OF_VERL)
def test_the_device_module_has_what_verl_calls(platform, name: str) -> None:
    assert callable(getattr(platform.device_module, name))


def test_calls_without_effect_take_any_arguments(platform) -> None:
    module = platform.device_module
    assert module.empty_cache() is None
    assert module.set_device(0) is None
    assert module.set_per_process_memory_fraction(0.9) is None
    assert module.synchronize() is None


def test_memory_is_that_of_host_and_process(platform) -> None:
    module = platform.device_module
    assert module.memory_allocated() == module.memory_reserved() == 0
    # torch alone takes more than 50 MB and no test machine has a petabyte.
    assert 50e6 < module.max_memory_allocated() < 1e15
    free, total = module.mem_get_info()
    assert 0 < free <= total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_random_state_goes_there_and_back(platform) -> None:
    module = platform.device_module
    state = module.get_rng_state()
    first = torch.rand(3)
    module.set_rng_state(state)
    assert torch.equal(torch.rand(3), first)
    platform.manual_seed(5)
    seeded = torch.rand(3)
    module.manual_seed_all(5)
    assert torch.equal(torch.rand(3), seeded)
    module.set_rng_state(state)


def test_profiling_is_without_effect(platform) -> None:
    with platform.nvtx_range("step"):
        pass
    assert platform.profiler_start() is None
    assert platform.profiler_stop() is None
    assert platform.cudart() is None
    assert platform.get_device_capability() == (None, None)

"""Which cluster ``ray.init`` joins, and what it then gets. test_patches.py looks at the target, Ray's function."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from omegaconf import OmegaConf

from spo_verl.conf import PLATFORMS
from spo_verl.cpu import ray_join

OWN = OmegaConf.to_container(OmegaConf.load(PLATFORMS / "cpu.yaml").ray_kwargs.ray_init)
"""What +platform=cpu hands to ray.init."""
RUNNING = "10.1.2.3:6379"


@pytest.fixture
def init(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``ray.init`` with the workaround, which answers its arguments. No cluster of this machine is found."""
    from ray._private import services

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda temp_dir: None)
    module = ModuleType("ray")
    module.init = lambda *args, **kwargs: (args, kwargs)  # type: ignore[attr-defined]
    ray_join.join_without_resources(module)
    return module.init


def test_the_keys_left_out_are_those_of_the_platform_that_ray_refuses() -> None:
    assert set(OWN) - set(ray_join.OF_THE_NODES) == {"include_dashboard"}  # which Ray ignores for another cluster


@pytest.mark.parametrize("variable", [None, "", "local"])
def test_a_cluster_of_its_own_gets_everything(init: Any, monkeypatch: pytest.MonkeyPatch, variable: str | None) -> None:
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert init(**OWN, runtime_env={"env_vars": {"A": "1"}}) == ((), {**OWN, "runtime_env": {"env_vars": {"A": "1"}}})


def test_an_address_of_the_configuration_wins(init: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", RUNNING)
    assert init(address="local", **OWN) == ((), {"address": "local", **OWN})


@pytest.mark.parametrize(
    ("variable", "address"),
    [(RUNNING, None), (RUNNING, "auto"), (None, RUNNING), ("", RUNNING), ("local", RUNNING), ("localhost:6379", None)],
)
def test_a_running_cluster_keeps_its_resources(
    init: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str, address: str
) -> None:
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    given = {} if address is None else {"address": address}
    args, kwargs = init(**given, **OWN, runtime_env={"working_dir": None, "env_vars": {"A": "1"}})
    joined = {"working_dir": None, "env_vars": {"A": "1", "VERL_PLATFORM": "cpu"}}
    assert (args, kwargs) == ((), {**given, "include_dashboard": False, "runtime_env": joined})
    printed = capsys.readouterr().out
    assert ":6379: its nodes have num_cpus, num_gpus, object_store_memory of their own" in printed


def test_one_that_ray_start_left_running_is_found(init: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda temp_dir: RUNNING)
    assert init(**OWN) == ((), {"include_dashboard": False, "runtime_env": {"env_vars": {"VERL_PLATFORM": "cpu"}}})
    assert init(RUNNING, runtime_env=None)[0] == (RUNNING,)


def test_auto_without_a_cluster_is_rays_own_error(init: Any) -> None:
    with pytest.raises(ConnectionError, match="Could not find any running Ray"):
        init("auto", **OWN)


def test_variables_of_the_run_win(init: Any) -> None:
    assert init(RUNNING, runtime_env={"env_vars": {"VERL_PLATFORM": " CPU"}})[1]["runtime_env"] == {
        "env_vars": {"VERL_PLATFORM": " CPU"}
    }

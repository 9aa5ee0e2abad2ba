"""The wait for a node that has just been started; that Ray's own function is the target, test_patches.py looks at."""

from __future__ import annotations

from types import ModuleType

import pytest

from spo_verl.cpu import ray_start


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the code under test has slept."""
    slept = [0.0]
    monkeypatch.setattr(ray_start.time, "monotonic", lambda: slept[0])
    monkeypatch.setattr(ray_start.time, "sleep", lambda seconds: slept.__setitem__(0, slept[0] + seconds))
    return slept


def services(answers: list[object]) -> ModuleType:
    module = ModuleType("services")

    def get_node(gcs_address, node_id):
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer, gcs_address, node_id

    module.get_node = get_node  # type: ignore[attr-defined]
    ray_start.wait_for_node(module)
    return module


def test_a_node_that_registers_late_is_waited_for(clock):
    late = RuntimeError("No node with id 1")
    assert services([late] * 500 + ["info"]).get_node("here", node_id="1") == ("info", "here", "1")
    assert clock[0] == pytest.approx(100)


def test_a_node_that_never_registers_is_an_error(clock):
    with pytest.raises(RuntimeError, match="No node"):
        services([RuntimeError("No node with id 1")]).get_node("here", "1")
    assert clock[0] == pytest.approx(180, abs=1)


def test_other_errors_are_raised_at_once(clock):
    with pytest.raises(ValueError, match="address"):
        services([ValueError("address")]).get_node("here", "1")
    assert clock[0] == 0

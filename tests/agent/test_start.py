"""Agent loops that are looked at before the first rollout."""

import asyncio

import psutil
import pytest

from spo_verl.agent.agent_errors import SpoInterpreterError
from spo_verl.agent.interpreter import embedded
from spo_verl.agent.start import LOOP, require_working_loops
from spo_verl.errors import SpoConfigError


def file_of(folder, *entries: str):
    path = folder / "agents.yaml"
    path.write_text("".join(entries))
    return path


def entry(more: str = "") -> str:
    return f"- name: code_interpreter\n  _target_: {LOOP}\n{more}"


def test_the_loop_is_named_as_it_is():
    from spo_verl.agent.loop import CodeInterpreterLoop

    assert f"{CodeInterpreterLoop.__module__}.{CodeInterpreterLoop.__qualname__}" == LOOP


def test_a_machine_that_holds_programs_is_accepted_and_nothing_is_left_running(tmp_path):
    before = set(psutil.Process().children(recursive=True))
    require_working_loops(file_of(tmp_path, entry("  interpreter: {packages: []}\n")))
    assert set(psutil.Process().children(recursive=True)) <= before


def test_it_may_be_asked_where_an_event_loop_runs(tmp_path):
    async def within() -> None:
        require_working_loops(file_of(tmp_path, entry("  interpreter: {packages: []}\n")))

    asyncio.run(within())


def test_a_limit_that_does_not_hold_refuses_the_run(tmp_path, monkeypatch):
    async def escaped(server, hello):
        return embedded.Enforcement(
            limits={**dict.fromkeys(embedded.LIMITS, True), "no_network": False}, folder=True, **hello
        )

    monkeypatch.setattr(embedded, "_try_to_escape", escaped)
    with pytest.raises(SpoInterpreterError, match=r"does not hold programs to: no_network"):
        require_working_loops(file_of(tmp_path, entry("  interpreter: {packages: []}\n")))


def test_wrong_settings_are_all_named(tmp_path):
    file = file_of(tmp_path, entry("  style: prose\n  max_turns: 0\n"))
    with pytest.raises(SpoConfigError, match="2 problems") as found:
        require_working_loops(file)
    assert "max_turns" in str(found.value)


def test_other_loops_and_servers_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded.EmbeddedInterpreter, "start", None)
    other = "- name: mine\n  _target_: my.own.Loop\n  anything: 1\n"
    remote = entry("  interpreter: {backend: sandbox_fusion, url: 'http://127.0.0.1:1'}\n")
    require_working_loops(file_of(tmp_path, other, remote))

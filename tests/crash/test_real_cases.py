"""Few real launches that are killed; the campaign of them is ``python -m tests.crash.real``."""

from __future__ import annotations

import pytest

from tests.crash import real
from tests.crash.ledger import LaunchCase, add_launch, read_launches


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", real.MODES)
def test_a_killed_launch_is_continued(tmp_path, mode):
    real.prepare(tmp_path)
    first, second = (real.case(tmp_path, mode, 0, number) for number in range(2))
    assert first.problems == second.problems == []
    assert second.loaded == first.step > 0


def test_the_error_of_a_log_is_this_packages_where_there_is_one():
    log = "x\n(T pid=1) spo_verl.errors.SpoServiceError: it is gone\nray.exceptions.ActorDiedError: killed\nbye\n"
    assert real.error_in(log) == "spo_verl.errors.SpoServiceError: it is gone"
    assert real.error_in(log.replace("spo_verl.errors.Spo", "")) == "ray.exceptions.ActorDiedError: killed"
    assert real.error_in("all is well") == ""
    text = "\x1b[36mray::A.b()\x1b[39m (pid=7, ip=192.0.2.1) in /home/me/run1: 1/2"
    assert real.plain(text) == "ray::A.b() (pid=..., ip=...) in PATH: 1/2"


def test_a_line_of_the_ledger_comes_back(tmp_path):
    case = LaunchCase(0, 1, "sync", "rank", 1.5, 2.5, "goes on", 0, 4, 1, [])
    add_launch(tmp_path / "ledger", case)
    add_launch(tmp_path / "ledger", case)
    assert read_launches(tmp_path / "ledger") == [case, case]

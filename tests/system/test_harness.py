"""The harness of the real runs, on commands that are no run."""

from __future__ import annotations

import sys

import pytest

from tests.system import harness

SCRIPT = """
import pathlib, sys
tries = pathlib.Path(sys.argv[1])
tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
if len(tries.read_text()) <= int(sys.argv[2]):
    sys.exit("Exception: " + sys.argv[3])
"""


@pytest.fixture
def repeated(monkeypatch) -> dict[str, str]:
    monkeypatch.setattr(harness, "REPEATED", {})
    return harness.REPEATED


@pytest.mark.parametrize(
    ("failures", "message", "tries", "code"),
    [
        (0, "", 1, 0),
        (1, f"{harness.NO_RAY}. This could happen because", 2, 0),
        (2, f"{harness.NO_RAY}. This could happen because", 2, 1),
        (1, "anything else", 1, 1),
    ],
)
def test_only_a_ray_that_did_not_start_is_launched_again_and_once(
    tmp_path, repeated, failures, message, tries, code
) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "tries"), str(failures), message]
    run = harness.launch(tmp_path, "one", command)
    assert (len((tmp_path / "tries").read_text()), run.returncode) == (tries, code)
    assert list(repeated) == ["one"] * (tries - 1)


def test_the_end_of_the_raylet_s_log_is_kept(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(harness.tempfile, "gettempdir", lambda: str(tmp_path))
    logs = tmp_path / "ray" / "session_2026-11-27_01-33-13_163000_77" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.out").write_text("".join(f"line {number}\n" for number in range(50)))
    (logs / "raylet.err").write_text("it failed\n")
    found = harness.raylet_log(77).splitlines()
    assert (found[0], found[1], found[-1], len(found)) == ("it failed", "line 30", "line 49", 21)
    assert harness.raylet_log(7) == ""

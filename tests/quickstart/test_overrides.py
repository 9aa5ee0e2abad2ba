"""What a call is given for verl is checked against verl's configuration before anything is made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from spo_verl.errors import SpoConfigError
from spo_verl.launching.composition import type_problems
from spo_verl.launching.limits import RunError
from spo_verl.quickstart import overrides as overrides_module
from spo_verl.quickstart.overrides import check_overrides
from spo_verl.small.launches import Settings

pytestmark = pytest.mark.long

REFUSED = {
    "spo.sampling.gama=0.5": "did you mean spo.sampling.gamma?",
    "typo=": "typo",
    "trainer.nosuch=3": "trainer.nosuch",
    "spo.sampling.gamma=2": "less than or equal to 1",
    "trainer.save_freq=often": "a whole number",
    "actor_rollout_ref.rollout.n=0": "at least 1",
    "data.train_batch_size=2048": "1024 training prompts",
}
ACCEPTED = ("spo.sampling.mode=uniform", "+trainer.note=mine", "~trainer.esi_redundant_time", "trainer.test_freq=-1")

PROBLEMS = """
import json, sys
from spo_verl.quickstart.overrides import problems_of
from spo_verl.small.launches import Settings
found = {}
for override in json.loads(sys.argv[1]):
    found[override] = problems_of(Settings(overrides=(override,)))
found["accepted"] = problems_of(Settings(overrides=tuple(json.loads(sys.argv[2]))))
found["grpo"] = problems_of(Settings(estimator="grpo", overrides=("spo.sampling.mode=uniform",)))
found["two"] = problems_of(Settings(overrides=("spo.nosuch=1", "trainer.nosuch=2")))
print("FOUND " + json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", PROBLEMS, json.dumps(list(REFUSED)), json.dumps(ACCEPTED)],
        env={**os.environ, "VERL_PLATFORM": "cpu"},
        capture_output=True,
        text=True,
        timeout=1100,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    return dict(json.loads(line.removeprefix("FOUND ")))


@pytest.mark.parametrize("override", REFUSED)
def test_what_would_stop_the_run_is_one_problem_on_one_line(override: str, found: dict[str, list[str]]) -> None:
    [problem] = found[override]
    assert REFUSED[override] in problem
    assert "\n" not in problem


def test_what_verl_takes_is_taken(found: dict[str, list[str]]) -> None:
    assert found["accepted"] == []


def test_settings_of_spo_are_none_of_the_group_baseline_and_all_problems_are_listed(
    found: dict[str, list[str]],
) -> None:
    assert len(found["grpo"]) == 1
    assert len(found["two"]) == 2


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        (3, 4, None), (3, 4.0, None), (3, 4.5, "a whole number"), (3, "x", "a whole number"),
        (3, True, "a whole number"), (0.5, 1, None),
        (0.5, float("nan"), "a number"), (0.5, "x", "a number"), (0.5, False, "a number"),
        (True, False, None), (True, 1, "true or false"), (True, "yes please", "true or false"),
        ("text", 3, None), ("text", [1], "a text"), ([1], [2, 3], None), ([1], 2, "a list"),
        (None, "x", None), (3, None, None), (3, "${other}", None),
    ],
)  # fmt: skip
def test_types_that_differ_are_told(old: object, new: object, wanted: str | None) -> None:
    problems = type_problems(*(OmegaConf.create({"a": {"key": value}, "other": 1}) for value in (old, new)))
    if wanted is None:
        assert problems == []
    else:
        [problem] = problems
        assert problem.startswith(f"a.key={new}: it has to be {wanted}")


def test_without_overrides_nothing_is_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overrides_module.subprocess, "run", lambda *_, **__: pytest.fail("composed"))
    check_overrides(Settings())


def answering(monkeypatch: pytest.MonkeyPatch, status: int, out: str, err: str = "") -> None:
    done = subprocess.CompletedProcess([], status, out, err)
    monkeypatch.setattr(overrides_module.subprocess, "run", lambda *_, **__: done)


def test_the_answer_of_the_child_is_what_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = Settings(overrides=("trainer.x=1",))
    answering(monkeypatch, 0, 'words of a library\nPROBLEMS ["one"]\n')
    with pytest.raises(SpoConfigError, match=r"^these settings cannot be run: one$"):
        check_overrides(settings)
    answering(monkeypatch, 0, "PROBLEMS []\n")
    check_overrides(settings)
    answering(monkeypatch, 1, "", "no such module")
    with pytest.raises(RunError, match="no such module"):
        check_overrides(settings)

"""A trainer with a deadline ends in time: after a step, with a checkpoint of that step, and not earlier than need be.

The loop is verl's, cut down to what decides: what ``PPOTrainer.fit`` looks at, in its order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from spo_verl.launching import deadline as deadline_module
from spo_verl.launching.deadline import SAVE_EVERY_S, STOP_AT, Deadline, install


@dataclass
class Trainer:
    """verl's loop over a clock of its own; ``seconds`` is how long each step takes."""

    seconds: list[float]
    save_seconds: float = 1.0
    validate_seconds: float = 2.0
    save_freq: int = 10
    test_freq: int = 25
    first: int = 1
    now: float = 0.0
    saved: list[tuple[int, float]] = field(default_factory=list)
    validated: list[int] = field(default_factory=list)
    global_steps: int = 0

    def __post_init__(self) -> None:
        self.config = SimpleNamespace(trainer=SimpleNamespace(save_freq=self.save_freq, test_freq=self.test_freq))
        self.total_training_steps = len(self.seconds)

    def fit(self, deadline: Deadline | None) -> None:
        def timed(what, action):
            return action() if deadline is None else deadline.timed(what, action)

        timed("validate", lambda: self.pass_(self.validate_seconds))
        self.global_steps = self.first
        while self.global_steps <= self.total_training_steps:
            step = self.global_steps
            last = step >= self.total_training_steps
            timed("step", lambda: self.pass_(self.seconds[step - 1]))  # noqa: B023
            if deadline is not None:
                deadline.after_step(self)
            config = self.config.trainer
            if config.save_freq > 0 and (last or step % config.save_freq == 0):
                timed("save", lambda: self.pass_(self.save_seconds))
                self.saved.append((step, self.now))
            if config.test_freq > 0 and (last or step % config.test_freq == 0):
                timed("validate", lambda: self.pass_(self.validate_seconds))
                self.validated.append(step)
            self.global_steps += 1
            if last:
                return

    def pass_(self, seconds: float) -> None:
        self.now += seconds


def run(stop_at: float, seconds: list[float], **settings: float) -> Trainer:
    trainer = Trainer(seconds, **settings)  # type: ignore[arg-type]
    trainer.fit(Deadline(stop_at, lambda: trainer.now))
    return trainer


def test_with_time_enough_nothing_differs_from_verls_own_loop() -> None:
    alone, watched = Trainer([4.0] * 50), run(10_000.0, [4.0] * 50)
    alone.fit(None)
    assert (watched.saved, watched.validated) == (alone.saved, alone.validated)
    assert [step for step, _ in watched.saved] == [10, 20, 30, 40, 50]


def test_it_stops_after_a_step_saves_and_validates() -> None:
    # Validation 2 s, steps 5 s, a save 1 s: after step 7 it is 37 s, and 1.25 * (5 + 5 + 2) s are not left.
    trainer = run(50.0, [5.0] * 50)
    assert trainer.saved == [(7, 38.0)]
    assert trainer.validated == [7]
    assert trainer.now == 40.0


def test_a_validation_that_does_not_fit_is_left_out_and_the_save_is_not() -> None:
    # 8 s of validation, three steps of 5 s and a save are 24 s; then comes a step that takes eight times as long.
    trainer = run(60.0, [5.0] * 3 + [40.0] * 10, validate_seconds=8.0, save_freq=2)
    assert trainer.saved == [(2, 19.0), (4, 65.0)]
    assert trainer.validated == []


@given(
    st.lists(st.floats(0.5, 1.0), min_size=5, max_size=40),
    st.floats(0.1, 30.0),
    st.floats(0.0, 1.5),
    st.floats(0.0, 3.0),
    st.integers(1, 12),
    st.integers(-1, 12),
    st.floats(20.0, 600.0),
)
def test_whatever_the_durations_the_last_step_is_saved_in_time(
    shares: list[float], scale: float, save: float, validate: float, save_freq: int, test_freq: int, stop_at: float
) -> None:
    steps = [share * scale for share in shares]
    durations = {"save_seconds": save * scale, "validate_seconds": validate * scale}
    trainer = run(stop_at, steps, **durations, save_freq=save_freq, test_freq=test_freq)
    last = trainer.global_steps - 1
    assert trainer.saved[-1][0] == last  # whatever was trained is saved
    if last > 1:
        # Steps vary by a factor of two here. No step was begun that would not have fitted at its last length.
        began = trainer.saved[-1][1] - durations["save_seconds"] - steps[last - 1]
        assert began < stop_at
    if last == len(steps):
        return
    # It did not stop early without need: one more step with everything, half as long again, would not have fitted.
    longest = max(steps)
    worst = longest + max(longest, durations["save_seconds"]) + durations["validate_seconds"]
    assert trainer.saved[-1][1] - durations["save_seconds"] + 1.25 * worst >= stop_at


def test_steps_that_take_long_are_saved_more_often() -> None:
    trainer = run(10_000.0, [SAVE_EVERY_S + 1] * 4 + [1.0] * 6)
    # Four long ones, each saved; then verl's own tenth.
    assert [step for step, _ in trainer.saved] == [1, 2, 3, 4, 10]
    assert (trainer.config.trainer.save_freq, trainer.config.trainer.test_freq) == (10, 25)


def test_a_run_that_wants_no_checkpoints_gets_one_at_the_deadline_only() -> None:
    trainer = run(300.0, [SAVE_EVERY_S] * 20, save_freq=-1, test_freq=-1)
    assert len(trainer.saved) == 1
    assert trainer.validated == []


def test_the_last_step_stays_verls_own() -> None:
    trainer = run(3.0, [5.0], save_freq=10)
    assert (trainer.saved, trainer.validated) == ([(1, 8.0)], [1])


def test_nothing_is_installed_without_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STOP_AT, raising=False)
    module = ModuleType("trainer_base")
    install(module)
    assert not hasattr(module, "PPOTrainer")


def test_it_wraps_the_trainer_that_the_modes_inherit_from(monkeypatch: pytest.MonkeyPatch) -> None:
    class PPOTrainer:
        def step(self, metrics):
            return "batch"

        def _save_checkpoint(self):
            return None

        def _validate(self):
            return {"val": 1.0}

    class Mode(PPOTrainer):
        def _save_checkpoint(self):
            super()._save_checkpoint()

    module = ModuleType("trainer_base")
    module.PPOTrainer = PPOTrainer  # type: ignore[attr-defined]
    monkeypatch.setenv(STOP_AT, "0.0")  # long ago
    monkeypatch.setattr(deadline_module.time, "monotonic", lambda: 100.0)
    install(module)
    trainer = Mode()
    trainer.config = SimpleNamespace(trainer=SimpleNamespace(save_freq=10, test_freq=25))  # type: ignore[attr-defined]
    trainer.global_steps, trainer.total_training_steps = 3, 50  # type: ignore[attr-defined]
    assert trainer.step({}) == "batch"
    assert trainer._validate() == {"val": 1.0}
    assert (trainer.total_training_steps, trainer.config.trainer.save_freq) == (3, 1)  # type: ignore[attr-defined]


@pytest.mark.parametrize("stop_at", [None, 40.0])
def test_verls_own_loop_ends_so(stop_at: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """``PPOTrainer.fit`` itself, without anything behind it: steps of 5 s, saves of 1 s, validations of 2 s."""
    base = pytest.importorskip("verl.trainer.ppo.v1.trainer_base")
    for name in (
        "Tracking",
        "ValidationGenerationsLogger",
        "DapoFilteredRewardTableLogger",
        "SkipManager",
        "tqdm",
        "tq",
    ):
        monkeypatch.setattr(base, name, MagicMock())
    happened: list[str] = []
    clock = [0.0]

    class Fitting(base.PPOTrainer):
        def _pass(self, what: str, seconds: float) -> None:
            happened.append(f"{what} {self.global_steps}")
            clock[0] += seconds

        def step(self, metrics, timing_raw):
            self._pass("step", 5.0)
            return MagicMock()

        def _save_checkpoint(self):
            self._pass("save", 1.0)

        def _validate(self):
            self._pass("validate", 2.0)
            return {"val": 1.0}

        def on_step_end(self):
            happened.append("end")

        def on_sample_end(self):
            raise AssertionError

        _compute_metrics = _shutdown_dump_executor = _start_profiling = lambda *_, **__: None
        _stop_profiling = _reissue_inflight_prompts = _shutdown_dump_executor

    module = ModuleType("trainer_base")
    module.PPOTrainer = Fitting  # type: ignore[attr-defined]
    monkeypatch.delenv(STOP_AT, raising=False)
    if stop_at is not None:
        monkeypatch.setenv(STOP_AT, repr(stop_at))
    monkeypatch.setattr(deadline_module.time, "monotonic", lambda: clock[0])
    install(module)
    trainer = object.__new__(Fitting)
    trainer.config = OmegaConf.create(
        {
            "trainer": {
                "save_freq": 4, "test_freq": 100, "total_epochs": 1, "val_before_train": True,
                "project_name": "p", "experiment_name": "e", "logger": [],
            },
            "global_profiler": {"steps": None},
        }
    )  # fmt: skip
    OmegaConf.set_struct(trainer.config, True)
    trainer.global_steps, trainer.total_training_steps, trainer.steps_per_epoch = 0, 10, 10
    trainer.fit(MagicMock())
    # After step 6 it is 2 + 6 * 5 + 1 = 33 s, and another one with a save and a validation may take 1.25 * 8 s.
    last = 10 if stop_at is None else 6
    expected = ["validate 0"]
    for number in range(1, last + 1):
        expected += [f"step {number}"]
        expected += [f"save {number}"] if number == last or number % 4 == 0 else []
        expected += ["end"]
    assert happened == [*expected, f"validate {last}"]

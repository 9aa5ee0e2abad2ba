"""The quickstart from beginning to end: task, model, offline values, training and the result.

Every stage looks at the run's folder first and does only what is missing, so a call continues wherever the last one was
interrupted. A call whose time is over shows what there is by then.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spo_verl.drawing import load_plotting
from spo_verl.errors import SpoStateError
from spo_verl.files import writing
from spo_verl.launching.launch import METRICS_NAME, Run, failure, run_main_ppo
from spo_verl.launching.limits import Limits, OutOfTime, RunError
from spo_verl.launching.runs import REWARD, finished_prompts, spent
from spo_verl.quickstart.evaluate import Policy, change, point, policies, policy, tracked, validated
from spo_verl.quickstart.live import training_progress
from spo_verl.quickstart.overrides import check_overrides
from spo_verl.quickstart.plots import draw_summary
from spo_verl.quickstart.report import summary
from spo_verl.quickstart.runs import FORMAT, RunFolder, has_run, open_run
from spo_verl.small.launches import LAUNCH_ENVIRONMENT, Settings, refuse, training_overrides
from spo_verl.small.prepare import prepare_model, read_report
from spo_verl.small.task import Task, build_task, write_parquet
from spo_verl.small.warmstart import WarmStartReport, load_libraries

Say = Callable[[str], None]
STAGE = "training"
"""Of the launches; offline values are sampled by the first one that lacks them."""
LEAST_SECONDS = 30.0
"""A launch that would have less time than this is not begun."""
RESERVE_S = 10.0
"""Seconds of a call kept for the evaluation and the picture, besides what they were measured to take."""


def quickstart(
    settings: Settings, base: Path, *, limits: Limits | None = None, fresh: bool = False, say: Say = print
) -> dict[str, Any]:
    """Run what is missing of the run with these settings; return (and write as ``result.json``) its result.

    When the time of the call is over, that is what there is by then: ``steps_done`` of the wanted steps, maybe none.
    The next call continues from there.

    Raises:
        SpoConfigError: the settings contradict each other, or verl's configuration does not compose with them.
        RunError: a stage failed, or another call is at work. What there is of the training was shown before.
    """
    limits = limits or Limits()
    settings.check()
    refuse(limits.problems())
    with writing(base, SpoStateError):
        base = base.resolve()
    task = build_task(train=settings.train_prompts, held_out=settings.held_out_prompts, seed=settings.seed)
    if fresh or not has_run(base, settings):
        check_overrides(settings)
    with open_run(base, settings, fresh=fresh) as folder:
        finished = folder.result()
        if finished is None:
            return _Call(settings, task, base, folder, limits, say).run()
        say(f"this run is finished; --fresh starts a new one. Its result, {folder.path}:\n")
        with folder.result_faults():
            text = summary(finished)
            if not folder.plot.exists():
                draw_summary(finished, folder.plot)
        say(text)
        return finished


class _Call:
    """One call at work in one run's folder. What a restart needs is on disk; this holds only what is passed around."""

    def __init__(self, settings: Settings, task: Task, base: Path, folder: RunFolder, limits: Limits, say: Say) -> None:
        self.settings, self.task, self.base, self.folder = settings, task, base, folder
        self.limits, self.say = limits, say
        self.started = time.monotonic()
        self.reserve = RESERVE_S

    def run(self) -> dict[str, Any]:
        settings, say = self.settings, self.say
        say(f"results go to {self.folder.path}; at most {self.limits.seconds / 60:.3g} minutes (--time-limit)")
        say(
            f"[1/4] task: arithmetic in 8 levels, {settings.train_prompts} prompts to train on, "
            f"{settings.held_out_prompts} held out"
        )
        train, held_out = write_parquet(self.task, self.folder.path / "data")
        say("[2/4] model and warm start")
        ended: RunError | None = None
        # What the evaluation takes is not known yet; a fifth of a short call has to do.
        seconds = self._remaining() - min(2 * RESERVE_S, self.limits.seconds / 5)
        partial = self.folder.warm_start
        try:
            model, warm = prepare_model(settings, self.task, self.base, say, partial=partial, seconds=seconds)
        except OutOfTime as error:
            ended, model = error, partial
            warm = read_report(model)
        initial = self._initial(model)
        if ended is None:
            try:
                paths = {"model": model, "train": train, "held_out": held_out}
                self._train(paths)
            except RunError as error:
                if not isinstance(error, OutOfTime) and not self.folder.finished_step:
                    raise
                ended = error
        say("[4/4] result\n")
        result = self._result(initial, warm)
        draw_summary(result, self.folder.plot)
        self.folder.write_result(result)
        say(summary(result))
        if isinstance(ended, OutOfTime):
            say(
                f"\nThe {self.limits.seconds:.0f} s of this call (--time-limit) were over {ended}: the same call again "
                "continues from there."
            )
        elif ended is not None:
            raise ended
        return result

    def _initial(self, model: Path) -> Policy:
        """The initial policy. It has to be evaluated anyway, and shows how long the end of the call will take."""
        load_plotting()
        load_libraries()
        began = time.monotonic()
        found = policy(0, model, self.task)
        self.reserve = RESERVE_S + 3 * (time.monotonic() - began)
        return found

    def _train(self, paths: dict[str, Path]) -> None:
        settings, folder, done, steps = self.settings, self.folder, self.folder.finished_step, self.settings.steps
        values = folder.values if settings.offline else None
        missing = values is not None and not values.exists()
        self.say(f"[3/4] training: {steps} steps of {settings.trajectories} trajectories with {settings.estimator}")
        if done >= steps:
            self.say(f"  finished before: checkpoint of step {done}")
            return
        if done:
            self.say(f"  continuing after step {done}")
        self.say(f"  offline values: {self._origin(values)}")
        attempt = folder.new_attempt(STAGE)
        overrides = training_overrides(settings, **paths, checkpoints=folder.checkpoints, values=values)
        metrics = attempt / METRICS_NAME
        with training_progress(metrics, steps=steps, done=done, values_first=missing, say=self.say) as progress:
            try:
                run = self._launch(attempt, overrides, progress)
            finally:
                progress.update()
        if folder.finished_step == steps:
            return
        if run.stopped_early:
            raise OutOfTime(self._kept())
        raise RunError(
            f"verl ended without an error at step {folder.finished_step} of {steps}; see {attempt}/train.log"
        )

    def _origin(self, values: Path | None) -> str:
        settings = self.settings
        if values is None:
            return "none, " + ("not asked for" if settings.estimator == "spo" else "the group baseline has none")
        if values.exists():
            return f"reusing {values}"
        plural = "" if settings.offline_trials == 1 else "s"
        return f"first {settings.offline_trials} response{plural} of the initial policy to each training prompt"

    def _launch(self, attempt: Path, overrides: Sequence[str], on_text: Callable[[str], None]) -> Run:
        self.say(f"  python -m verl.trainer.main_ppo {' '.join(overrides[:3])} ...   (whole: {attempt}/command.txt)")
        remaining = self._remaining() - self.reserve
        if remaining < LEAST_SECONDS:
            raise OutOfTime(self._kept())
        run = run_main_ppo(
            overrides,
            attempt,
            env=LAUNCH_ENVIRONMENT,
            time_limit_s=remaining,
            # Ray needs a moment to end; a launch that is ended meanwhile has lost nothing.
            stop_after_s=remaining - RESERVE_S,
            silence_limit_s=self.limits.silence_s,
            memory_limit_bytes=self.limits.memory_gib * 2**30,
            on_text=on_text,
        )
        self.folder.note(run)
        if not run.ok and run.outcome.status != "time limit":
            raise RunError(failure(run, self.limits))
        # A launch that is ended at its limit may have had only its farewell left.
        if not run.ok and self.folder.finished_step < self.settings.steps:
            raise OutOfTime(self._kept())
        return run

    def _remaining(self) -> float:
        return self.limits.seconds - (time.monotonic() - self.started)

    def _kept(self) -> str:
        settings, folder = self.settings, self.folder
        if settings.offline and not folder.values.exists():
            return (
                f"while offline values were sampled. Those of {finished_prompts(folder)} of {settings.train_prompts} "
                "prompts are kept"
            )
        kept, done = folder.finished_step, max(folder.trained_step, folder.finished_step)
        if not done:
            return "before the first training step was done. Everything before it is kept"
        which = "All" if done == kept else f"The first {kept}" if kept else "None"
        return f"after {done} of {settings.steps} steps. {which} of them are kept"

    def _result(self, initial: Policy, warm: WarmStartReport) -> dict[str, Any]:
        """Everything that is known of the run, as plain data."""
        settings, folder, task = self.settings, self.folder, self.task
        found = policies(folder, initial, task, late=lambda: self._remaining() < self.reserve / 2)
        before, after = found[0], found[-1]
        records = (validated(record, prompts=settings.held_out_prompts) for record in folder.records(STAGE))
        launched = folder.used(STAGE)
        tracks = settings.estimator == "spo" and folder.finished_step > 0
        return {
            "format": FORMAT,
            "settings": settings.as_json(),
            "variant": settings.variant,
            "folder": str(folder.path),
            "steps_done": folder.finished_step,
            "warm_start": dataclasses.asdict(warm),
            "offline_prompts": finished_prompts(folder),
            "held_out": change(before.held_out_H, after.held_out_H, task.held_out),
            "train": change(before.train_P, after.train_P, task.train),
            "curve": [point(one, before, task) for one in found],
            "sampled": [record for record in records if record is not None],
            "reward": {one["step"]: one["data"][REWARD] for one in folder.metrics() if REWARD in one["data"]},
            "spent": spent(folder),
            "tracker": tracked(folder, task, before.train_P, after.train_P) if tracks else None,
            "seconds": {"warm_start": warm.seconds, "training": launched["seconds"]},
            "peak_bytes": launched["peak_bytes"],
        }

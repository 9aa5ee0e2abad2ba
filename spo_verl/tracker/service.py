"""One tracker for everyone: a thin Ray actor around :class:`~spo_verl.tracker.tracker.Tracker`, and its
client.

A training step makes four calls whatever the batch: ``draw``, ``dispatch``, ``recall``, ``finish_step``. The
actor does not restart: a tracker that came back empty would go unnoticed, so its death is an error that says
so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import ray
from numpy.typing import ArrayLike, NDArray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from spo_verl.errors import SpoError, SpoServiceError, SpoStateError
from spo_verl.tracker.arguments import checked_whole, shown
from spo_verl.tracker.checkpoint.layout import target_of
from spo_verl.tracker.checkpoint.snapshot import Snapshot, check_extra
from spo_verl.tracker.quota import PromptSources
from spo_verl.tracker.reports import Draw, Frozen, Late, LoadReport, ObserveReport, Recall, StepReport, WriteReport
from spo_verl.tracker.responses import StoredResponses
from spo_verl.tracker.settings import Ending, TrackerSettings
from spo_verl.tracker.tracker import Tracker

CALL_SECONDS = 600.0
"""How long a client waits for an answer."""
SAVE_SECONDS = 3600.0
"""How long a client waits for a checkpoint to be read or written."""
STOP_SECONDS = 60.0
"""How long ``stop`` waits for the actor's end."""


class _Save(threading.Thread):
    """Writes one snapshot and keeps what came of it."""

    def __init__(self, snapshot: Snapshot, folder: str | Path, step: int, extra: dict[str, Any]) -> None:
        super().__init__(name="spo-tracker-save", daemon=True)
        self._task = (snapshot, folder, step, extra)
        self.report: WriteReport | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        snapshot, folder, step, extra = self._task
        try:
            self.report = snapshot.write(folder, step=step, extra=extra)
        except BaseException as error:  # noqa: BLE001 - carried to whoever joins
            self.error = error

    def result(self) -> WriteReport:
        """Wait for the end; raises what stopped the writing."""
        self.join()
        if self.report is None:
            raise self.error or SpoStateError("the tracker's writer thread ended without a result.")
        return self.report


class TrackerHost:
    """Holds one tracker and at most one save under way; what the actor runs, usable without Ray."""

    def __init__(self) -> None:
        self._tracker: Tracker | None = None
        self._save: _Save | None = None

    def create(self, *args: Any, **kwargs: Any) -> int:
        """:meth:`Tracker.create`; returns the number of prompts."""
        self._refuse_second()
        self._tracker = Tracker.create(*args, **kwargs)
        return self._tracker.size

    def load(self, *args: Any, **kwargs: Any) -> LoadReport:
        """:meth:`Tracker.load`; the files are read here."""
        self._refuse_second()
        self._tracker, report = Tracker.load(*args, **kwargs)
        return report

    def call(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        """A verb or property of the tracker; raises :class:`SpoStateError` where it has none of this name."""
        tracker = self._ready()
        if not isinstance(verb, str) or verb.startswith("_") or not hasattr(tracker, verb):
            raise SpoStateError(f"the tracker has no verb {shown(verb)}; see spo_verl.tracker.Tracker.")
        attribute = getattr(tracker, verb)
        return attribute(*args, **kwargs) if callable(attribute) else attribute

    def begin_save(
        self, folder: str | Path, step: int, extra: dict[str, Any] | None = None, *, digest: bool = True
    ) -> dict[str, Any]:
        """Take a snapshot and write it in a thread; see :meth:`TrackerClient.begin_save`."""
        began = time.perf_counter()
        if self._save is not None:
            raise SpoStateError("a save of the tracker has been begun and not ended; call end_save first.")
        folder, step, extra = target_of(folder), checked_whole("step", step), check_extra(extra)
        snapshot = self._ready().snapshot()
        answer = {"digest": snapshot.digest} if digest else {}
        self._save = _Save(snapshot, folder, step, extra)
        self._save.start()
        return answer | {"seconds": time.perf_counter() - began}

    # In a group of its own, so that waiting for the writer does not hold up the verbs.
    @ray.method(concurrency_group="save")
    def end_save(self) -> WriteReport:
        """Wait for the writer; raises its error."""
        save = self._save
        if save is None:
            raise SpoStateError("no save of the tracker has been begun; call begin_save first.")
        try:
            return save.result()
        finally:
            self._save = None

    def _ready(self) -> Tracker:
        if self._tracker is None:
            raise SpoStateError("the tracker service has no tracker yet; call create or load first.")
        return self._tracker

    def _refuse_second(self) -> None:
        if self._tracker is not None:
            raise SpoStateError("the tracker service has a tracker already; start another service for another.")


TrackerActor = ray.remote(num_cpus=0, max_restarts=0, concurrency_groups={"save": 1})(TrackerHost)
"""The actor class around :class:`TrackerHost`."""


class TrackerClient:
    """The verbs of a :class:`Tracker` that lives in an actor; can be sent to other processes of the cluster.

    Errors of the tracker arrive as they were raised.

    Raises:
        SpoServiceError: (every method) the actor is gone or did not answer in time.
    """

    def __init__(self, actor: Any, name: str) -> None:
        self._actor = actor
        self.name = name

    def create(
        self,
        key_P: NDArray,
        settings: TrackerSettings,
        *,
        alpha_P: NDArray | None = None,
        beta_P: NDArray | None = None,
        sources: PromptSources | None = None,
        version: int = 0,
    ) -> int:
        """Make the tracker, see :meth:`Tracker.create`; returns the number of prompts."""
        evidence = {"alpha_P": alpha_P, "beta_P": beta_P}
        call = self._actor.create.remote(key_P, settings, **evidence, sources=sources, version=version)
        return cast(int, self._get(call, SAVE_SECONDS))

    def load(
        self,
        folder: str | Path,
        key_P: NDArray,
        settings: TrackerSettings,
        *,
        alpha_P: NDArray | None = None,
        beta_P: NDArray | None = None,
        sources: PromptSources | None = None,
        version: int | None = None,
    ) -> LoadReport:
        """Make the tracker from a checkpoint, see :meth:`Tracker.load`; the actor reads the files."""
        evidence = {"alpha_P": alpha_P, "beta_P": beta_P}
        call = self._actor.load.remote(str(folder), key_P, settings, **evidence, sources=sources, version=version)
        return cast(LoadReport, self._get(call, SAVE_SECONDS))

    def draw(self, size: int, version: int | None = None) -> Draw:
        """See :meth:`Tracker.draw`."""
        return cast(Draw, self._call("draw", size, version))

    def dispatch(self, uids: list[str], slot_B: ArrayLike, version: int) -> Frozen:
        """See :meth:`Tracker.dispatch`."""
        return cast(Frozen, self._call("dispatch", uids, slot_B, version))

    def redispatch(self, uids: list[str], version: int) -> Frozen:
        """See :meth:`Tracker.redispatch`."""
        return cast(Frozen, self._call("redispatch", uids, version))

    def recall(self, uids: list[str]) -> Recall:
        """See :meth:`Tracker.recall`."""
        return cast(Recall, self._call("recall", uids))

    def observe(
        self, uids: list[str], session_B: ArrayLike, reward_B: ArrayLike, divergence_B: ArrayLike
    ) -> ObserveReport:
        """See :meth:`Tracker.observe`."""
        return cast(ObserveReport, self._call("observe", uids, session_B, reward_B, divergence_B))

    def remember(self, uids: list[str], responses: StoredResponses) -> None:
        """See :meth:`Tracker.remember`."""
        self._call("remember", uids, responses)

    def settle(self, uids: list[str], kind: Ending = "trained") -> None:
        """See :meth:`Tracker.settle`."""
        self._call("settle", uids, kind)

    def absorb(self, late: Sequence[Late]) -> ObserveReport:
        """See :meth:`Tracker.absorb`."""
        return cast(ObserveReport, self._call("absorb", late))

    def advance(self, movement: float) -> None:
        """See :meth:`Tracker.advance`."""
        self._call("advance", movement)

    def finish_step(
        self,
        uids: list[str],
        session_B: ArrayLike,
        reward_B: ArrayLike,
        divergence_B: ArrayLike,
        *,
        remember_uids: list[str] | tuple[()] = (),
        responses: StoredResponses | None = None,
        settle_uids: list[str] | tuple[()] = (),
        late: Sequence[Late] = (),
        movement: float | None = None,
    ) -> StepReport:
        """See :meth:`Tracker.finish_step`."""
        answer = self._call(
            "finish_step",
            uids,
            session_B,
            reward_B,
            divergence_B,
            remember_uids=remember_uids,
            responses=responses,
            settle_uids=settle_uids,
            late=late,
            movement=movement,
        )
        return cast(StepReport, answer)

    @property
    def size(self) -> int:
        """See :attr:`Tracker.size`."""
        return cast(int, self._call("size"))

    @property
    def open_count(self) -> int:
        """See :attr:`Tracker.open_count`."""
        return cast(int, self._call("open_count"))

    @property
    def counters(self) -> dict[str, int]:
        """See :attr:`Tracker.counters`."""
        return cast(dict[str, int], self._call("counters"))

    @property
    def version(self) -> int | None:
        """See :attr:`Tracker.version`."""
        return cast(int | None, self._call("version"))

    @property
    def movement(self) -> float | None:
        """See :attr:`Tracker.movement`."""
        return cast(float | None, self._call("movement"))

    def open_uids(self) -> list[str]:
        """See :meth:`Tracker.open_uids`."""
        return cast(list[str], self._call("open_uids"))

    def evidence(self, slot_B: ArrayLike | None = None) -> tuple[NDArray, NDArray]:
        """See :meth:`Tracker.evidence`."""
        return cast(tuple[NDArray, NDArray], self._call("evidence", slot_B))

    def values(self) -> NDArray:
        """See :meth:`Tracker.values`."""
        return cast(NDArray, self._call("values"))

    def value_histogram(self, bins: int) -> NDArray:
        """See :meth:`Tracker.value_histogram`."""
        return cast(NDArray, self._call("value_histogram", bins))

    def metrics(self) -> dict[str, float]:
        """See :meth:`Tracker.metrics`."""
        return cast(dict[str, float], self._call("metrics"))

    def digest(self) -> str:
        """See :meth:`Tracker.digest`."""
        return cast(str, self._call("digest"))

    def begin_save(
        self, folder: str | Path, step: int, extra: dict[str, Any] | None = None, *, digest: bool = True
    ) -> dict[str, Any]:
        """Take a snapshot now and let a thread of the actor write it to ``folder``.

        Args:
            folder: where the checkpoint will stand; an existing one is replaced when the new one is whole.
            step: training step, for the manifest.
            extra: JSON values to be saved along; ``LoadReport.extra`` gives them back.
            digest: work out the state's digest before returning. It reads all state once (about a second per
                gigabyte); without it the writer does so, and :meth:`end_save` has it.

        Returns:
            ``seconds`` that this held up the caller, and ``digest`` where asked for.

        Raises:
            SpoStateError: a save is under way, or ``extra`` is not JSON.
        """
        call = self._actor.begin_save.remote(str(folder), step, extra, digest=digest)
        return cast(dict[str, Any], self._get(call, CALL_SECONDS))

    def end_save(self) -> WriteReport:
        """Wait until the checkpoint that was begun is whole and in place.

        Raises:
            SpoStateError: no save was begun.
            SpoCheckpointError: it could not be written.
        """
        return cast(WriteReport, self._get(self._actor.end_save.remote(), SAVE_SECONDS))

    def stop(self) -> None:
        """End the actor at once and wait until it has ended; what was not saved is lost.

        Raises:
            SpoServiceError: it still answers after ``STOP_SECONDS``.
        """
        ray.kill(self._actor)
        # Ray only asks for the end here; until it has come, the actor goes on answering.
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            try:
                ray.get(self._actor.__ray_ready__.remote(), timeout=STOP_SECONDS)
            except RayActorError:
                return
            except GetTimeoutError:
                break
            time.sleep(0.02)
        raise SpoServiceError(
            f"the tracker service {self.name!r} did not end within {STOP_SECONDS:.0f} s of being told to; its process "
            "goes with the Ray cluster (`ray stop`)."
        )

    def _call(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        try:
            call = self._actor.call.remote(verb, *args, **kwargs)
        except TypeError as error:  # a generator, an open file, ...
            raise SpoStateError(
                f"{verb}: an argument cannot be sent to the tracker service ({_first_line(error)}); pass lists, arrays "
                "and plain values."
            ) from error
        return self._get(call, CALL_SECONDS)

    def _get(self, call: Any, seconds: float) -> Any:
        try:
            return ray.get(call, timeout=seconds)
        except RayTaskError as error:
            if isinstance(error.cause, SpoError):
                raise error.cause from error
            raise
        except GetTimeoutError as error:
            raise SpoServiceError(
                f"the tracker service {self.name!r} did not answer within {seconds:.0f} s; look at its "
                "node's load and disk, then resume the run from its last checkpoint "
                "(trainer.resume_mode=auto)."
            ) from error
        except RayError as error:
            raise SpoServiceError(
                f"the tracker service {self.name!r} is gone ({type(error).__name__}: {_first_line(error)}); "
                "its state since the last checkpoint is lost with it. Look for its end in the Ray logs "
                "(often memory), then resume the run with trainer.resume_mode=auto."
            ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no details"])[0]


def start_service(name: str, namespace: str | None = None, *, seconds: float = CALL_SECONDS) -> TrackerClient:
    """Start a tracker actor on the caller's node; make its tracker with ``create`` or ``load``.

    The actor lives as long as the process that started it, takes no CPU from the scheduler, and is not
    restarted.

    Raises:
        SpoServiceError: the name is taken, or the actor did not come up within ``seconds``.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    try:
        actor = TrackerActor.options(name=name, namespace=namespace, scheduling_strategy=here).remote()
    except ValueError as error:
        raise SpoServiceError(
            f"cannot start the tracker service {name!r}: {_first_line(error)} Another run in this Ray "
            "cluster and namespace holds the name; end that run, or give this one another name."
        ) from error
    client = TrackerClient(actor, name)
    client._get(actor.__ray_ready__.remote(), seconds)
    return client


def connect(name: str, namespace: str | None = None) -> TrackerClient:
    """A client of a service that another process started.

    Raises:
        SpoServiceError: there is none of that name.
    """
    try:
        return TrackerClient(ray.get_actor(name, namespace=namespace), name)
    except ValueError as error:
        raise SpoServiceError(
            f"there is no tracker service {name!r} in this Ray cluster and namespace; start the trainer "
            "first, or pass its namespace."
        ) from error

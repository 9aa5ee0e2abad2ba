"""One tracker for everyone: a thin Ray actor around :class:`~spo_verl.tracker.tracker.Tracker`, and its client.

A training step makes four calls whatever the batch: ``draw``, ``dispatch``, ``recall``, ``finish_step``. The
actor does not restart: a tracker that came back empty would go unnoticed, so its death is an error that says
so. Signatures are those of the tracker: the client only names the verbs that it passes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from spo_verl.errors import SpoError, SpoServiceError, SpoStateError
from spo_verl.tracker.arguments import checked_whole, shown
from spo_verl.tracker.checkpoint.schema import target_of
from spo_verl.tracker.checkpoint.snapshot import Snapshot, check_extra
from spo_verl.tracker.reports import LoadReport, WriteReport
from spo_verl.tracker.tracker import Tracker

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")

CALL_SECONDS = 600.0
"""How long a client waits for an answer."""
SAVE_SECONDS = 3600.0
"""How long a client waits for a checkpoint to be read or written."""
OVERVIEW_SECONDS = 2.0
"""How old an overview may be: so often at most is one worked out, however many ask."""
OVERVIEW_BINS = 20
STOP_SECONDS = 60.0
"""How long ``stop`` waits for the actor's end."""


class _Save(threading.Thread):
    """Writes one snapshot and keeps its result or error."""

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


def _takes_arguments_of(
    verb: Callable[Arguments, Any],
) -> Callable[[Callable[..., Answer]], Callable[Concatenate[Any, Arguments], Answer]]:
    """Tell type checkers that a method with ``*args, **kwargs`` passes them to this verb; changes nothing else."""
    return lambda method: method


class TrackerHost:
    """Holds one tracker and at most one save under way; what the actor runs, usable without Ray."""

    def __init__(self) -> None:
        self._tracker: Tracker | None = None
        self._save: _Save | None = None
        self._overview: tuple[float, dict[str, Any]] | None = None

    @_takes_arguments_of(Tracker.create)
    def create(self, *args: Any, **kwargs: Any) -> int:
        """Make the tracker, see :meth:`Tracker.create`; returns the number of prompts."""
        self._refuse_second()
        self._tracker = Tracker.create(*args, **kwargs)
        return self._tracker.size

    @_takes_arguments_of(Tracker.load)
    def load(self, *args: Any, **kwargs: Any) -> LoadReport:
        """Make the tracker from a checkpoint, see :meth:`Tracker.load`; the actor reads the files."""
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

    def overview(self) -> dict[str, Any]:
        """For watchers: ``metrics`` of the tracker, ``value_histogram`` of ``OVERVIEW_BINS`` bins, ``age`` in seconds.

        Changes nothing of the tracker. One overview serves everyone for ``OVERVIEW_SECONDS``, so that any number of
        watchers costs what one does: milliseconds below a million prompts.
        """
        now = time.monotonic()
        if self._overview is None or now - self._overview[0] >= OVERVIEW_SECONDS:
            tracker = self._ready()
            bins = [int(count) for count in tracker.value_histogram(OVERVIEW_BINS)]
            self._overview = now, {"metrics": tracker.metrics(), "value_histogram": bins}
        return self._overview[1] | {"age": now - self._overview[0]}

    def begin_save(
        self, folder: str | Path, step: int, extra: dict[str, Any] | None = None, *, digest: bool = True
    ) -> dict[str, Any]:
        """Take a snapshot now and let a thread of the actor write it to ``folder``.

        Args:
            folder: where the checkpoint will be; an existing one is replaced when the new one is whole.
            step: training step, for the manifest.
            extra: JSON values to be saved along; ``LoadReport.extra`` gives them back.
            digest: work out the state's digest before returning. It reads all state once (about a second per
                gigabyte); without it the writer does so, and :meth:`end_save` has it.

        Returns:
            ``seconds`` that this held up the caller, and ``digest`` where asked for.

        Raises:
            SpoStateError: a save is under way, or ``extra`` is not JSON.
        """
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
        """Wait until the checkpoint that was begun is whole and in place.

        Raises:
            SpoStateError: no save was begun.
            SpoCheckpointError: it could not be written.
        """
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


class _OfHost(Generic[Arguments, Answer]):
    """A method of the host that a client calls in the actor, with the same arguments and answer."""

    def __init__(self, method: Callable[Concatenate[Any, Arguments], Answer], seconds: float = CALL_SECONDS) -> None:
        self._seconds, self.__doc__ = seconds, method.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, client: None, owner: type) -> _OfHost[Arguments, Answer]: ...
    @overload
    def __get__(self, client: TrackerReader, owner: type) -> Callable[Arguments, Answer]: ...
    def __get__(self, client: TrackerReader | None, owner: type) -> Any:
        return self if client is None else self._bound(client)

    def _bound(self, client: TrackerReader) -> Any:
        return partial(client._ask, self._name, self._seconds, getattr(client._actor, self._name))


class _Verb(_OfHost[Arguments, Answer]):
    """A verb of the tracker that the host holds."""

    def _bound(self, client: TrackerReader) -> Any:
        return partial(client._ask, self._name, self._seconds, client._actor.call, self._name)


class _Property(Generic[Answer]):
    """A property of the tracker that the host holds."""

    def __init__(self, of: Callable[[Tracker], Answer]) -> None:
        self.__doc__ = of.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, client: None, owner: type) -> _Property[Answer]: ...
    @overload
    def __get__(self, client: TrackerReader, owner: type) -> Answer: ...
    def __get__(self, client: TrackerReader | None, owner: type) -> Any:
        return self if client is None else client._ask(self._name, CALL_SECONDS, client._actor.call, self._name)


class TrackerReader:
    """What can be read of a :class:`Tracker` that lives in an actor; nothing here changes it.

    Can be sent to other processes of the cluster. Errors of the tracker arrive as they were raised.

    Raises:
        SpoServiceError: (every method) the actor is gone or did not answer in time.
    """

    def __init__(self, actor: Any, name: str) -> None:
        self._actor = actor
        self.name = name

    size = _Property(Tracker.size)
    open_count = _Property(Tracker.open_count)
    counters = _Property(Tracker.counters)
    version = _Property(Tracker.version)
    movement = _Property(Tracker.movement)
    open_uids = _Verb(Tracker.open_uids)
    recall = _Verb(Tracker.recall)
    keys = _Verb(Tracker.keys)
    evidence = _Verb(Tracker.evidence)
    values = _Verb(Tracker.values)
    value_histogram = _Verb(Tracker.value_histogram)
    metrics = _Verb(Tracker.metrics)
    digest = _Verb(Tracker.digest)
    overview = _OfHost(TrackerHost.overview)

    def _ask(self, verb: str, seconds: float, method: Any, /, *args: Any, **kwargs: Any) -> Any:
        try:
            call = method.remote(*args, **kwargs)
        except TypeError as error:  # a generator, an open file, ...
            raise SpoStateError(
                f"{verb}: an argument cannot be sent to the tracker service ({_first_line(error)}); pass lists, arrays "
                "and plain values."
            ) from error
        return self._get(call, seconds)

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


class TrackerClient(TrackerReader):
    """The service as its trainer has it: it makes the tracker, changes it, saves it and ends it."""

    create = _OfHost(TrackerHost.create, SAVE_SECONDS)
    load = _OfHost(TrackerHost.load, SAVE_SECONDS)
    draw = _Verb(Tracker.draw)
    dispatch = _Verb(Tracker.dispatch)
    redispatch = _Verb(Tracker.redispatch)
    settle = _Verb(Tracker.settle)
    absorb = _Verb(Tracker.absorb)
    finish_step = _Verb(Tracker.finish_step)
    begin_save = _OfHost(TrackerHost.begin_save)
    end_save: _OfHost[[], WriteReport] = _OfHost(TrackerHost.end_save, SAVE_SECONDS)  # Ray's decorator has no types

    def stop(self) -> None:
        """End the actor at once and wait until it has ended; what was not saved is lost.

        Raises:
            SpoServiceError: it still answers after ``STOP_SECONDS``.
        """
        ray.kill(self._actor)
        # Ray only asks for the end here; until it has come, the actor continues to answer.
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
            f"the tracker service {self.name!r} did not end within {STOP_SECONDS:.0f} s of being asked to; its process "
            "goes with the Ray cluster (`ray stop`)."
        )


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
        SpoServiceError: no service has that name.
    """
    try:
        return TrackerClient(ray.get_actor(name, namespace=namespace), name)
    except ValueError as error:
        raise SpoServiceError(
            f"there is no tracker service {name!r} in this Ray cluster and namespace; start the trainer "
            "first, or pass its namespace."
        ) from error

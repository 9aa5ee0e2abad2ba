"""Ends a run that waits for an actor that is dead: its machine was lost, or its process killed.

verl's loop asks TransferQueue again and again whether rollouts have finished. What a dead agent-loop worker was
answering never finishes, a request to a dead storage unit or controller of TransferQueue waits for minutes or for ever,
and a dead rank is noticed when it is called next. Nothing in that loop asks Ray, so it is asked here, in a thread.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError
from transfer_queue import interface

from spo_verl.errors import SpoRolloutError

logger = logging.getLogger(__name__)

PERIOD = 5.0
"""Seconds between two looks."""
SIGNAL = getattr(signal, "SIGRTMIN", signal.SIGURG - 7) + 7
"""Wakes the main thread, whatever it waits for. Not SIGURG where there is another: libraries in Go use that one."""
QUEUE = "TransferQueue"


def needed_actors(trainer: Any, agent_loop_manager: Any) -> dict[str, Any]:
    """The actors that rollouts and training need, by what they are.

    Args:
        trainer: a trainer of verl.
        agent_loop_manager: verl's, or a user's own.
    """
    groups = {
        "agent-loop worker": _of(agent_loop_manager, "agent_loop_workers"),
        "reward worker": _of(trainer.reward_loop_manager, "reward_loop_workers"),
        "training rank": _of(trainer.actor_rollout_wg, "workers"),
        "rollout server": [
            server
            for name in ("llm_server_manager", "standalone_server_manager")  # the second one in separate_async
            if hasattr(trainer, name)
            for server in _of(getattr(trainer, name), "server_handles")
        ],
        # Known only to the process that made them, which is the trainer's unless runs share a queue.
        f"storage unit of {QUEUE}": (interface._TQ_STORAGE or {}).get("SimpleStorage", {}).values(),
    }
    found = {f"{kind} {number}": actor for kind, group in groups.items() for number, actor in enumerate(group)}
    if interface._TQ_CONTROLLER is not None:
        found[f"controller of {QUEUE}"] = interface._TQ_CONTROLLER
    return found


def _of(holder: Any, name: str) -> Sequence[Any]:
    found = getattr(holder, name, None)
    if isinstance(found, list | tuple):
        return found
    logger.warning("spo: %s has no list %s; a lost one may leave the run waiting", type(holder).__name__, name)
    return ()


class LostActors:
    """What Ray says of some actors. One question per actor is open at a time, so that a busy one is asked once."""

    def __init__(self, actors: dict[str, Any]) -> None:
        self._actors = actors
        self._asked: dict[Any, str] = {}

    def look(self) -> str | None:
        """What is dead, and how Ray says it; None where all live, are busy, or cannot be reached for the moment."""
        for name in self._actors.keys() - self._asked.values():
            self._asked[self._actors[name].__ray_ready__.remote()] = name
        if not self._asked:
            return None
        answered, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=PERIOD)
        for answer in answered:
            name = self._asked.pop(answer)
            try:
                ray.get(answer)
            except ActorDiedError as error:
                return f"the {name} is gone ({' '.join(str(error).split())})"
            except RayError as error:
                logger.info("spo: the %s does not answer: %s", name, type(error).__name__)
        return None


@contextmanager
def ended_by_a_lost_actor(actors: dict[str, Any], saving: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """The body, and an error in it as soon as one of the actors is dead.

    Args:
        actors: by name, see :func:`needed_actors`.
        saving: whether a checkpoint is being written. It is finished first, unless it is the queue that is dead, which
            a checkpoint of an asynchronous mode has to be asked for.

    Raises:
        SpoRolloutError: an actor is dead, and the body had not noticed within ``PERIOD`` seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        # Signals reach the main thread only; whoever trains elsewhere keeps what verl notices by itself.
        logger.warning("spo: the trainer is not in its process's main thread; a lost actor may leave the run waiting")
        yield
        return
    stop, said, over = threading.Event(), list[str](), list[bool]()

    def watch() -> None:
        lost, main = LostActors(actors), threading.main_thread().ident
        assert main is not None
        found = None
        try:
            while found is None and not stop.wait(PERIOD):
                found = lost.look()
        except (RayError, AttributeError, RuntimeError, TypeError, ValueError):  # training does not depend on it
            logger.warning("spo: lost actors are not looked for any more", exc_info=True)
            return
        # What needs the actor itself may say it better, and has until then to do so. Again, since what is interrupted
        # may swallow an error.
        while found is not None and not stop.wait(PERIOD):
            if QUEUE in found or not saving():
                said[:] = [found]
                signal.pthread_kill(main, SIGNAL)

    def interrupt(number: int, frame: FrameType | None) -> None:
        # Of what a handler raises, this one alone ends a `ray.get`; Ray ignores the others there.
        if said and not over:
            raise KeyboardInterrupt(said[0])

    before = signal.signal(SIGNAL, interrupt)
    thread = threading.Thread(target=watch, name="spo-lost-actors", daemon=True)
    thread.start()
    try:
        try:
            yield
        finally:
            # First, without a lock that an interrupt could leave behind. One that comes before is caught below.
            over.append(True)
            stop.set()
    except BaseException as error:
        over.append(True)
        stop.set()
        if said:
            raise SpoRolloutError(
                f"{said[0]}: what needs it fails or never ends. Look for its end in the Ray logs (often memory, or a "
                "lost machine), and run the same command again: it continues from what was saved."
            ) from error
        raise
    finally:
        thread.join()
        signal.signal(SIGNAL, before)

"""Worker processes that share a device take stacks of cells in the order of the plan; one process writes the ledger."""

from __future__ import annotations

import os
import queue
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from . import tasks
from .ledger import Cell, append, missing, read
from .plan import PLANS, stacks
from .training import WARM, Stack, checkpoint, quickstart_start, warm_start

MOST_FAILURES = 6


@dataclass(frozen=True)
class Options:
    plan: str
    ledger: Path
    seconds: float
    device: str
    workers: int
    stack: int
    threads: int = 1
    warm_steps: int = WARM.max_steps


def _work(options: Options, deadline: float, jobs: Any, results: Any) -> None:
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    if options.device == "cuda":
        torch.zeros(1, device="cuda")  # the context takes seconds: begin before the first job
    while (job := jobs.get()) is not None:
        began = time.monotonic()
        try:
            if isinstance(job, str):
                left = max(1.0, deadline - time.monotonic())
                settings = replace(WARM, max_steps=options.warm_steps, max_seconds=min(WARM.max_seconds, left))
                own = job == "quickstart"
                folder = options.ledger.parent
                warm = quickstart_start(folder) if own else warm_start(tasks.KINDS[job], options.device, settings)
                path = checkpoint(job, options.ledger.parent)
                torch.save(warm, path.with_suffix(".part"))
                path.with_suffix(".part").rename(path)
                result: Any = {"steps": warm["steps"], "accuracy": warm["accuracy"]}
            else:
                stack = Stack(job, options.ledger.parent, options.device)
                result = stack.run(lambda: time.monotonic() > deadline)
        # One stack that fails must not end the others: the parent prints, halves and counts it.
        except Exception:  # noqa: BLE001
            result = traceback.format_exc()
        if options.device == "cuda":
            torch.cuda.empty_cache()  # the memory is shared with the other workers
        results.put((job, result, time.monotonic() - began))
        if isinstance(result, str) and not _alive(options.device):
            return  # a device that failed fails every later job of this process


def _alive(device: str) -> bool:
    try:
        return bool((torch.ones(2, device=device) + 1).sum().item() == 4.0)
    except RuntimeError:
        return False


def run(options: Options) -> int:
    """Run what the ledger lacks until it is done or the seconds are over; 1 if something failed."""
    began = time.monotonic()
    deadline = began + options.seconds
    blocks = [missing(block, options.ledger) for block in PLANS[options.plan](read(options.ledger))]
    waiting: list[list[Cell]] = stacks(blocks, options.stack)
    options.ledger.parent.mkdir(parents=True, exist_ok=True)
    models = list(dict.fromkeys(tasks.SAME_MODEL.get(stack[0].task, stack[0].task) for stack in waiting))
    cold = [name for name in models if not checkpoint(name, options.ledger.parent).exists()]
    warming, running, failed, finished = set(cold), 0, 0, 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = mp.get_context("spawn")
    jobs, results = context.Queue(), context.Queue()
    if not waiting:
        print("every cell of the plan is in the ledger", flush=True)
        return 0
    count = min(options.workers, len(waiting) + len(cold))
    processes = [context.Process(target=_work, args=(options, deadline, jobs, results)) for _ in range(count)]
    for process in processes:
        process.start()
    print(f"{sum(map(len, waiting))} cells in {len(waiting)} stacks, {count} workers on {options.device}", flush=True)
    slowest: dict[str, float] = {}

    def startable() -> int | None:
        left = deadline - time.monotonic()
        for place, stack in enumerate(waiting):
            first = stack[0]
            expected = slowest.get(_size(first), 0.0)
            if tasks.SAME_MODEL.get(first.task, first.task) not in warming and expected < left:
                return place
        return None

    while True:
        while cold and running < count:
            jobs.put(cold.pop(0))
            running += 1
        while running < count and time.monotonic() < deadline and (place := startable()) is not None:
            jobs.put(waiting.pop(place))
            running += 1
        if not running:
            break
        try:
            job, result, seconds = results.get(timeout=1.0)
        except queue.Empty:
            if not any(process.is_alive() for process in processes):
                print("all workers ended", flush=True)
                return 1
            if time.monotonic() > deadline + 30:
                print("workers do not end; their cells are left out", flush=True)
                break
            continue
        running -= 1
        at = f"{time.monotonic() - began:.0f} s"
        if isinstance(result, str):
            failed += 1
            print(f"{at}: FAILED {job if isinstance(job, str) else [cell.key for cell in job]}\n{result}", flush=True)
            if failed > MOST_FAILURES:
                waiting.clear()
            elif not isinstance(job, str) and len(job) > 1:  # perhaps too large for the memory that is left
                waiting[:0] = [job[: len(job) // 2], job[len(job) // 2 :]]
            elif isinstance(job, str):
                waiting[:] = [stack for stack in waiting if tasks.SAME_MODEL.get(stack[0].task, stack[0].task) != job]
        elif isinstance(job, str):
            warming.discard(job)
            print(f"{at}: warm start {job} in {seconds:.1f} s: {result}", flush=True)
        elif result is not None:
            for cell, each in zip(job, result, strict=True):
                append(options.ledger, cell, each)
            finished += len(job)
            slowest[_size(job[0])] = max(seconds, slowest.get(_size(job[0]), 0.0))
            print(f"{at}: {len(job)} cells of {job[0].task} in {seconds:.1f} s, {finished} in all", flush=True)
    for _ in processes:
        jobs.put(None)
    for process in processes:
        process.join(timeout=10)
        if process.is_alive():
            process.terminate()
    print(f"{finished} cells finished, {sum(map(len, waiting))} not started, {failed} stacks failed", flush=True)
    return int(failed > 0)


def _size(cell: Cell) -> str:
    return f"{cell.task}/{cell.batch}/{cell.steps}"

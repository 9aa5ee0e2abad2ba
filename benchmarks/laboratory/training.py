"""Many trainings in lock step: a stack of cells of the same task, batch and steps, one model each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spo_verl import core
from spo_verl.small.warmstart import WarmStartSettings

from . import model, tasks
from .ledger import Cell
from .methods import DYNAMIC_ROUNDS, METHODS, Batch, Knowledge, Method, advantages
from .tasks import PADDING, Kind, Problems

MINI_BATCHES = 4
MOST_ROWS = 30_000
"""Responses that are scored or sampled together at most, over all models: about 3 GiB."""
EVALUATE_EVERY = 10
HELD_OUT_SAMPLES = 8
"""Responses per held-out problem and evaluation where the success probability is not exact."""
RATE_SAMPLES = 32
RATE_EVERY = 20
"""Responses per prompt of a batch, and the steps between, that measure the error of values on such a task."""
CLIP_LOW, CLIP_HIGH = 0.2, 0.28
BAND = (0.3, 5.0)
NEGATIVE_SHARE = 0.1
RECORDED = {("spo", 0, 1e-4), ("spo", 1, 1e-4)}
"""Method, seed and learning rate of the cells whose visits are saved, so that other read-outs can be tried on them."""
VISIT = ("slot", "level", "reward", "value", "calibrated", "n_eff", "age", "rate")
WARM = WarmStartSettings(max_steps=6000, max_seconds=1800.0)


class Noise:
    """The randomness of sampling, a stream for each cell, so that a cell does not depend on its neighbours."""

    def __init__(self, seeds: Sequence[int], purpose: int, device: Any) -> None:
        self.streams = [np.random.default_rng(np.random.SeedSequence((seed, purpose))) for seed in seeds]
        self.device = device

    def __call__(self, rows: int, tokens: int, which: Sequence[int] | None = None) -> Tensor:
        streams = self.streams if which is None else [self.streams[index] for index in which]
        drawn = np.stack([stream.random((rows, tokens), dtype=np.float32) for stream in streams])
        return torch.from_numpy(drawn).to(self.device)


@torch.no_grad()
def success_rates(
    kind: Kind, weights: dict[str, Tensor], bank: Bank, row_KR: np.ndarray, noise: Noise, samples: int
) -> np.ndarray:
    """(K, R) probability that a response at temperature 1 is right: exact, or the mean of ``samples`` responses."""
    models, rows = row_KR.shape
    parts = []
    limit = max(1, MOST_ROWS // models)
    step = max(1, limit // (1 if kind.exact else samples))
    for start in range(0, rows, step):
        part_KR = row_KR[:, start : start + step]
        if kind.exact:
            prompt, answer = bank("prompt", part_KR), bank("answer", part_KR)
            parts.append(model.log_probs(weights, prompt, answer).sum(-1).exp())
            continue
        part_KR = np.repeat(part_KR, samples, axis=1)
        prompt, number = bank("prompt", part_KR), bank("number", part_KR)
        response = model.sample(weights, prompt, noise(part_KR.shape[1], kind.most_tokens))
        right = kind.grade(response.flatten(0, 1), number.flatten(0, 1)).view(models, -1, samples)
        parts.append(right.float().mean(-1))
    return torch.cat(parts, dim=1).double().cpu().numpy()


@dataclass
class Bank:
    """The problems of a stack: those of each checkpoint once, and which of them each model has."""

    sets: list[Problems]
    of_K: Tensor

    def __post_init__(self) -> None:
        self.prompt = torch.stack([one.prompt_PL for one in self.sets])
        self.number = torch.stack([one.number_PN for one in self.sets])
        answers = [one.answer_PT for one in self.sets if one.answer_PT is not None]
        self.answer = torch.stack(answers) if answers else None

    def __call__(self, name: str, row_KB: np.ndarray, which: list[int] | None = None) -> Tensor:
        """Rows (K, B, ...) of ``prompt``, ``number`` or ``answer``, for all models or for these."""
        of = self.of_K if which is None else self.of_K[which]
        rows: Tensor = getattr(self, name)[of[:, None], torch.from_numpy(row_KB).to(of.device)]
        return rows


def warm_start(kind: Kind, device: Any, settings: WarmStartSettings = WARM) -> dict[str, Any]:
    """Supervised training of all checkpoints of a task, each until its accuracy on its probe reaches the target."""
    models = tasks.starts(kind.name)
    seeds = list(range(models))
    sets = [tasks.build(kind.name, seed, 8) for seed in seeds]
    of_K = torch.arange(models, device=device)
    probes = Bank([tasks.tensors(kind, one.probe, device) for one in sets], of_K)
    reserved = [{problem.question for problem in (*one.held_out, *one.probe)} for one in sets]
    streams = [np.random.default_rng(np.random.SeedSequence((seed, 0x3A53))) for seed in seeds]
    flat = model.fresh(seeds, device).requires_grad_()
    optimizer = model.AdamW(flat, torch.full((models,), settings.learning_rate, device=device))
    noise, done, steps = Noise(seeds, 0x9B0E, device), {}, 0
    row_KR = np.tile(np.arange(256), (models, 1))
    accuracy = np.zeros(models)
    began = time.monotonic()
    while len(done) < models and steps < settings.max_steps and time.monotonic() - began < settings.max_seconds:
        steps += 1
        prompts, responses = [], []
        for rng, taken in zip(streams, reserved, strict=True):
            problems: list[tasks.Problem] = []
            while len(problems) < settings.batch_size:
                problem = kind.draw(int(rng.integers(1, tasks.LEVELS + 1)), rng)
                if problem.question not in taken:
                    problems.append(problem)
            prompts.append(tasks.tensors(kind, problems, "cpu").prompt_PL)
            texts = [[*tasks.encoded(kind.practice(problem, rng)), tasks.STOP] for problem in problems]
            responses.append(tasks.padded(texts, kind.most_tokens))
        prompt, response = torch.stack(prompts).to(device), torch.stack(responses).to(device)
        log_prob = model.log_probs(model.unflatten(flat), prompt, response)
        loss = -(log_prob.sum((1, 2)) / (response != PADDING).sum((1, 2))).sum()
        (gradient,) = torch.autograd.grad(loss, flat)
        optimizer.step(flat, gradient, min(1.0, steps / settings.ramp_steps))
        if steps % settings.check_every:
            continue
        rates = success_rates(kind, model.unflatten(flat.detach()), probes, row_KR, noise, HELD_OUT_SAMPLES)
        accuracy = rates.mean(1)
        for index in np.flatnonzero(accuracy >= settings.target):
            if index not in done:
                done[int(index)] = (flat.detach()[index].clone().cpu(), steps, float(accuracy[index]))
    for index in set(seeds) - set(done):
        done[index] = (flat.detach()[index].clone().cpu(), steps, float(accuracy[index]))
    return {
        "flat": torch.stack([done[seed][0] for seed in seeds]),
        "steps": [done[seed][1] for seed in seeds],
        "accuracy": [done[seed][2] for seed in seeds],
    }


def quickstart_start(folder: Path) -> dict[str, Any]:
    """The quickstart's warm starts, made and kept as ``./quickstart.sh --seed N`` does."""
    from spo_verl.small.launches import Settings
    from spo_verl.small.prepare import prepare_model

    found, rows = [], []
    for seed in range(tasks.starts("quickstart")):
        settings = Settings(seed=seed)
        task = tasks.ladder.build_task(train=settings.train_prompts, held_out=settings.held_out_prompts, seed=seed)
        made, report = prepare_model(settings, task, folder, print, partial=folder / f"start-{seed}")
        rows.append(model.from_transformers(made))
        found.append(report)
    return {
        "flat": torch.stack(rows),
        "steps": [report.steps for report in found],
        "accuracy": [report.accuracy for report in found],
    }


def checkpoint(kind_name: str, folder: Path) -> Path:
    return folder / f"warm_{tasks.SAME_MODEL.get(kind_name, kind_name)}.pt"


@dataclass
class Errors:
    """Sums of squared error and error of values against the success probability of their prompts."""

    count: int = 0
    squared: float = 0.0
    error: float = 0.0

    def add(self, value_B: np.ndarray, rate_B: np.ndarray, samples: int | None) -> None:
        """``samples``: responses that the rate is the mean of, whose variance is subtracted; None if it is exact."""
        noise = 0.0 if samples is None else float((rate_B * (1 - rate_B)).sum()) / (samples - 1)
        self.count += len(value_B)
        self.squared += float(((value_B - rate_B) ** 2).sum()) - noise
        self.error += float((value_B - rate_B).sum())

    def result(self) -> dict[str, float]:
        return {"mse": self.squared / max(self.count, 1), "bias": self.error / max(self.count, 1), "n": self.count}


def token_weights(method: Method, log_prob_BT: Tensor, length_B: Tensor, advantage_B: Tensor) -> Tensor:
    """1 for each response token in the loss, 0 for padding and what negative-token filtering leaves out."""
    inside_BT = torch.arange(log_prob_BT.shape[1], device=log_prob_BT.device) < length_B[:, None]
    if method.loss != "negative_tokens":
        return inside_BT.float()
    kept_B = torch.ceil(NEGATIVE_SHARE * length_B.float())
    order_BT = log_prob_BT.masked_fill(~inside_BT, float("inf")).argsort(1).argsort(1)
    return (inside_BT & ((advantage_B[:, None] >= 0) | (order_BT < kept_B[:, None]))).float()


def token_loss(method_is_band: Tensor, dual: Tensor, ratio: Tensor, advantage: Tensor) -> Tensor:
    """Loss of each token (K, B, T): PPO with clip-higher and dual clip, or the importance weight within its band."""
    plain = -advantage * ratio
    clipped = torch.maximum(plain, -advantage * ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH))
    clipped = torch.where(advantage < 0, torch.minimum(clipped, -advantage * dual), clipped)
    banded = plain * ((ratio > BAND[0]) & (ratio < BAND[1]))
    return torch.where(method_is_band, banded, clipped)


class Stack:
    """Cells of one task, batch, number of steps and size of the training set."""

    def __init__(self, cells: list[Cell], folder: Path, device: Any) -> None:
        self.cells, self.device = cells, device
        first = cells[0]
        self.kind = tasks.KINDS[first.task]
        self.batch, self.steps = first.batch, first.steps
        self.methods = [METHODS[cell.method] for cell in cells]
        models = tasks.starts(first.task)
        number = [cell.seed % models for cell in cells]
        built = [tasks.build(first.task, index, first.train) for index in range(models)]
        of_K = torch.tensor(number, device=device)
        train = [tasks.tensors(self.kind, one.train, device) for one in built]
        self.train = Bank(train, of_K)
        self.held = Bank([tasks.tensors(self.kind, one.held_out, device) for one in built], of_K)
        warm = torch.load(checkpoint(first.task, folder), weights_only=True)["flat"]
        self.flat = warm[number].to(device).requires_grad_()
        rate = torch.tensor([cell.rate for cell in cells], device=device)
        self.optimizer = model.AdamW(self.flat, rate)
        seeds = [cell.seed for cell in cells]
        self.noise, self.eval_noise = Noise(seeds, 0x5A3, device), Noise(seeds, 0xE7A, device)
        self.knowledge = [
            Knowledge(method, train[index].level_P, self.batch, cell.seed)
            for method, index, cell in zip(self.methods, number, cells, strict=True)
        ]
        self.order = [np.random.default_rng(np.random.SeedSequence((cell.seed, 0x0EDE))) for cell in cells]
        self.trajectories, self.tokens = np.zeros(len(cells), dtype=int), np.zeros(len(cells), dtype=int)
        self.curves: list[list[tuple[int, int, int, float]]] = [[] for _ in cells]
        self.errors = [{"raw": Errors(), "calibrated": Errors()} for _ in cells]
        self.rates = [Errors() for _ in cells]  # of a group of eight: p (1 - p) / 8
        self.signal = np.zeros(len(cells))
        self.folder = folder
        self.visits: dict[int, list[np.ndarray]] = {
            index: []
            for index, cell in enumerate(cells)
            if self.kind.exact and (cell.method, cell.seed, cell.rate) in RECORDED
        }

    @property
    def weights(self) -> dict[str, Tensor]:
        return model.unflatten(self.flat.detach())

    def run(self, stop: Callable[[], bool] = lambda: False) -> list[dict[str, Any]] | None:
        """Results of the cells in order; None where ``stop`` said so before the end."""
        began = time.monotonic()
        self.offline()
        for step in range(self.steps):
            if step % EVALUATE_EVERY == 0:
                self.evaluate(step)
            if stop():
                return None
            self.train_step(step)
        self.evaluate(self.steps)
        self.save_visits()
        return [self.result(index, time.monotonic() - began) for index in range(len(self.cells))]

    def evaluate(self, step: int) -> None:
        row_KR = np.tile(np.arange(len(self.held.sets[0])), (len(self.cells), 1))
        rates = success_rates(self.kind, self.weights, self.held, row_KR, self.eval_noise, HELD_OUT_SAMPLES)
        for index, accuracy in enumerate(rates.mean(1)):
            point = (step, int(self.trajectories[index]), int(self.tokens[index]), round(float(accuracy), 6))
            self.curves[index].append(point)

    def offline(self) -> None:
        """The pass before the training, for the methods that have one."""
        which = [index for index, method in enumerate(self.methods) if method.offline]
        if not which:
            return
        trials, prompts = self.methods[which[0]].offline, self.cells[0].train
        if any(self.methods[index].offline != trials for index in which):
            raise ValueError("cells with offline passes of different sizes in one stack")
        success_KP = np.zeros((len(which), prompts))
        for start in range(0, prompts, 512):
            row = np.arange(start, min(start + 512, prompts))
            row_KB = np.tile(np.repeat(row, trials), (len(which), 1))
            token, right = self.generate(which, row_KB)
            success_KP[:, row] = right.reshape(len(which), len(row), trials).sum(-1)
            self.trajectories[which] += row_KB.shape[1]
            self.tokens[which] += (token != PADDING).sum((1, 2)).cpu().numpy()
        for index, success_P in zip(which, success_KP, strict=True):
            self.knowledge[index].start(success_P)

    def generate(self, which: list[int], row_KB: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Responses and rewards of these cells."""
        weights = self.weights if len(which) == len(self.cells) else model.unflatten(self.flat.detach()[which])
        prompt, number = self.train("prompt", row_KB, which), self.train("number", row_KB, which)
        response = model.sample(weights, prompt, self.noise(row_KB.shape[1], self.kind.most_tokens, which))
        right = self.kind.grade(response.flatten(0, 1), number.flatten(0, 1)).view(len(which), -1)
        return response, right.double().cpu().numpy()

    def rollouts(self) -> tuple[list[Batch], Tensor, np.ndarray]:
        """A batch for each cell; cells with dynamic sampling generate until their groups are mixed."""
        every = list(range(len(self.cells)))
        batches = [one.draw() for one in self.knowledge]
        row_KB = np.stack([batch.slot_B for batch in batches])
        token_KBT, reward_KB = self.generate(every, row_KB)
        self._count(every, token_KBT)
        open_cells = [index for index in every if self.methods[index].dynamic]
        for _ in range(DYNAMIC_ROUNDS - 1):
            size = {index: self.methods[index].group for index in open_cells}
            flat = {index: np.ptp(reward_KB[index].reshape(-1, size[index]), axis=1) == 0 for index in open_cells}
            open_cells = [index for index in open_cells if flat[index].any()]
            if not open_cells:
                break
            again = [self.knowledge[index].draw() for index in open_cells]
            new_token, new_reward = self.generate(open_cells, np.stack([batch.slot_B for batch in again]))
            self._count(open_cells, new_token)
            for place, index in enumerate(open_cells):
                mixed = np.ptp(new_reward[place].reshape(-1, size[index]), axis=1) > 0
                take = np.flatnonzero(mixed)[: int(flat[index].sum())]
                into = np.flatnonzero(flat[index])[: len(take)]
                group = np.arange(size[index])
                source = (take[:, None] * size[index] + group).ravel()
                target = (into[:, None] * size[index] + group).ravel()
                batches[index].slot_B[target] = again[place].slot_B[source]
                reward_KB[index, target] = new_reward[place][source]
                token_KBT[index, torch.from_numpy(target)] = new_token[place, torch.from_numpy(source)]
        return batches, token_KBT, reward_KB

    def _count(self, which: list[int], token_KBT: Tensor) -> None:
        self.trajectories[which] += token_KBT.shape[1]
        self.tokens[which] += (token_KBT != PADDING).sum((1, 2)).cpu().numpy()

    def measure(self, step: int, batches: list[Batch], exact_KB: np.ndarray | None) -> None:
        """Errors of the values that were frozen for this batch."""
        samples = None
        if exact_KB is None:
            if step % RATE_EVERY:
                return
            row_KB = np.stack([batch.slot_B for batch in batches])
            samples = RATE_SAMPLES
            exact_KB = success_rates(self.kind, self.weights, self.train, row_KB, self.eval_noise, samples)
        for index, (batch, rate_B) in enumerate(zip(batches, exact_KB, strict=True)):
            _, once = np.unique(batch.slot_B, return_index=True)
            rate_B = rate_B[once]
            unbiased = 1.0 if samples is None else samples / (samples - 1)
            self.rates[index].count += len(once)
            self.rates[index].squared += float((rate_B * (1 - rate_B)).sum()) * unbiased / 8
            if self.knowledge[index].tracker is not None:
                self.errors[index]["raw"].add(batch.value_B[once], rate_B, samples)
                self.errors[index]["calibrated"].add(batch.calibrated_B[once], rate_B, samples)

    def note_visits(self, batches: list[Batch], reward_KB: np.ndarray, exact_KB: np.ndarray) -> None:
        for index, steps in self.visits.items():
            one, slot_B = self.knowledge[index], batches[index].slot_B
            age_B = one.step - np.maximum(one.visited_P[slot_B], 0)
            value_B, calibrated_B, n_eff_B = batches[index].value_B, batches[index].calibrated_B, batches[index].n_eff_B
            level_B = one.level_P[slot_B]
            row = (slot_B, level_B, reward_KB[index], value_B, calibrated_B, n_eff_B, age_B, exact_KB[index])
            steps.append(np.stack(row))

    def save_visits(self) -> None:
        """(steps, 8, B) for each recorded cell, the rows as in ``VISIT``, and the questions by slot."""
        for index, steps in self.visits.items():
            cell = self.cells[index]
            problems = tasks.build(cell.task, cell.seed % tasks.starts(cell.task), cell.train).train
            np.savez_compressed(
                self.folder / f"visits_{cell.task}_b{cell.batch}_seed{cell.seed}.npz",
                visits=np.float32(steps),
                question=np.array([problem.question for problem in problems]),
            )

    def train_step(self, step: int) -> None:
        batches, token_KBT, reward_KB = self.rollouts()
        row_KB = np.stack([batch.slot_B for batch in batches])
        prompt_KBL = self.train("prompt", row_KB)
        stored_KBT, then = self._stored(batches)
        parts = [token_KBT, stored_KBT]
        if self.kind.exact:
            parts.append(self.train("answer", row_KB))
        with torch.no_grad():
            scored = model.log_probs(self.weights, prompt_KBL.repeat(1, len(parts), 1), torch.cat(parts, 1))
        old_KBT, now_KBT, *answers = scored.split(self.batch, dim=1)
        exact_KB = answers[0].sum(-1).exp().double().cpu().numpy() if answers else None
        token, old, now = (part.cpu().numpy() for part in (token_KBT, old_KBT, now_KBT))
        length_KB = (token != PADDING).sum(-1)
        self.measure(step, batches, exact_KB)
        if exact_KB is not None:
            self.note_visits(batches, reward_KB, exact_KB)
        advantage_KB = np.stack(
            [
                advantages(method, reward_B, length_B, batch, None if exact_KB is None else exact_KB[index])
                for index, (method, reward_B, length_B, batch) in enumerate(
                    zip(self.methods, reward_KB, length_KB, batches, strict=True)
                )
            ]
        )
        self.signal += (np.abs(advantage_KB) > 1e-4).mean(1)
        advantage = torch.from_numpy(advantage_KB).float().to(self.device)
        length = torch.from_numpy(length_KB).to(self.device)
        weight_KBT = torch.stack(
            [token_weights(*each) for each in zip(self.methods, old_KBT, length, advantage, strict=True)]
        )
        self.update(prompt_KBL, token_KBT, old_KBT, weight_KBT, advantage)
        for index, (one, batch) in enumerate(zip(self.knowledge, batches, strict=True)):
            divergence_B = np.zeros(self.batch)
            if index in then:
                inside = then[index][1]
                divergence_B = core.divergence(then[index][0], now[index, :, : inside.shape[1]], inside)
            one.learn(batch, reward_KB[index], divergence_B, token[index], old[index], length_KB[index])

    def _stored(self, batches: list[Batch]) -> tuple[Tensor, dict[int, tuple[np.ndarray, np.ndarray]]]:
        """Stored responses of the drawn prompts as (K, B, T), and their log-probabilities and masks by cell."""
        most = self.kind.most_tokens
        token_KBT = np.full((len(batches), self.batch, most), PADDING)
        then: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for index, batch in enumerate(batches):
            if batch.stored is None:
                continue
            stored = batch.stored
            inside = np.zeros((self.batch, most), dtype=bool)
            inside[stored.row_B] = np.arange(most) < stored.length_B[:, None]
            log_prob = np.zeros((self.batch, most))
            # Rows of the request are in order, so the flat tokens fill the places row by row.
            token_KBT[index][inside], log_prob[inside] = stored.token_N, stored.log_prob["acting"]
            then[index] = (log_prob, inside)
        return torch.from_numpy(token_KBT).to(self.device), then

    def update(self, prompt: Tensor, token: Tensor, old: Tensor, weight: Tensor, advantage: Tensor) -> None:
        """Four mini-batches; single streams are permuted, groups stay together."""
        order_KB = np.stack(
            [
                rng.permutation(self.batch) if method.group == 1 else np.arange(self.batch)
                for rng, method in zip(self.order, self.methods, strict=True)
            ]
        )
        band = torch.tensor([method.loss == "double_sided" for method in self.methods], device=self.device)[
            :, None, None
        ]
        dual = torch.tensor([method.dual for method in self.methods], device=self.device)[:, None, None]
        models = torch.arange(len(self.cells), device=self.device)[:, None]
        for rows in np.array_split(order_KB, MINI_BATCHES, axis=1):
            which = torch.from_numpy(rows).to(self.device)
            chosen, before, share, signal = (part[models, which] for part in (token, old, weight, advantage))
            now = model.log_probs(model.unflatten(self.flat), prompt[models, which], chosen)
            loss = token_loss(band, dual, (now - before).exp(), signal[..., None]) * share
            # The denominator counts all tokens, also those that a filter leaves out.
            loss = (loss.sum((1, 2)) / (chosen != PADDING).sum((1, 2))).sum()
            (gradient,) = torch.autograd.grad(loss, self.flat)
            self.optimizer.step(self.flat, gradient)

    def result(self, index: int, seconds: float) -> dict[str, Any]:
        errors = {name: one.result() for name, one in self.errors[index].items()}
        group = self.rates[index]
        return {
            "curve": self.curves[index],
            "trajectories": int(self.trajectories[index]),
            "tokens": int(self.tokens[index]),
            "errors": errors if self.knowledge[index].tracker is not None else {},
            "group_of_eight": group.squared / max(group.count, 1),
            "signal": float(self.signal[index] / self.steps),
            "device": torch.cuda.get_device_name() if self.device == "cuda" else str(self.device),
            "stack": len(self.cells),
            "stack_seconds": round(seconds, 2),
        }

"""verl's validation dumps: one JSON object per generated trajectory, ``<trainer.validation_data_dir>/<step>.jsonl``."""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spo_verl.config import RewardConfig
from spo_verl.data.canonical import canonical_json
from spo_verl.data.identity import DatasetKeys
from spo_verl.data.unit_reward import unit_reward
from spo_verl.data.values.match_report import MatchReport, require_some
from spo_verl.data.values.prompt_texts import (
    PromptText,
    counted,
    identified,
    prompt_texts,
    rows_without,
    squeeze,
)
from spo_verl.data.values.values_table import OfflineValues, provenance
from spo_verl.errors import SpoValuesError
from spo_verl.files import read_json_lines

logger = logging.getLogger(__name__)

_TRAJECTORY = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})_([0-9]{1,9})_([0-9]{1,9})", re.ASCII)


@dataclass
class _Trials:
    """What the dumps hold: ground truth and rendered input -> sum of rewards and number of trials."""

    sums: defaultdict[tuple[bytes, str], float] = field(default_factory=lambda: defaultdict(float))
    counts: Counter[tuple[bytes, str]] = field(default_factory=Counter)
    steps: Counter[Any] = field(default_factory=Counter)
    sessions: set[tuple[str, int]] = field(default_factory=set)
    lines: int = 0
    repeated: int = 0
    strange: int = 0


def from_validation_dump(
    paths: str | Path | Sequence[str | Path],
    dataset: Any,
    *,
    keys: DatasetKeys | None = None,
    reward: RewardConfig | None = None,
    mixed_steps: bool = False,
    policy: str | None = None,
    sampling: Mapping[str, Any] | None = None,
    date: str | None = None,
) -> tuple[OfflineValues, MatchReport]:
    """Read validation dumps that verl made of (part of) the training data, without any tokenizer.

    A line belongs to the prompt whose ground truth equals its ``gts`` and whose messages are in its ``input`` (the
    rendered prompt), in order and white space aside; the model's own earlier messages do not take part, as templates
    shorten them. Where several fit, the longest does: a short question may be part of a longer one. Prompts with the
    same texts and ground truth (which differ in media, tools or data source) are all given the trials, and reported.
    An agent loop that returns several outputs writes one line each under one session; a session is one trial.

    Cost: prompts with the line's ground truth are compared one by one, once per distinct input.

    Args:
        paths: One or more ``.jsonl`` files.
        dataset: As in `from_reference_json`.
        keys: As in `from_reference_json`.
        reward: Which field is the reward (``key``; None: ``score``), and its range, mapped to [0, 1].
        mixed_steps: Whether lines of several training steps, and so of several policies, may be added up.
        policy, sampling, date: For the provenance, as in `provenance`.

    Returns:
        The values, and what matched; an entry is a distinct rendered prompt.

    Raises:
        SpoValuesError: A file is missing or not readable, a line is not one of verl's (names file and line), the steps
            differ, or nothing matches.
        SpoRewardError: A reward is missing or outside its range. Names file and line.
    """
    files = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    found = _collect(files, reward or RewardConfig())
    if len(found.steps) > 1 and not mixed_steps:
        raise SpoValuesError(
            f"the dumps are of {len(found.steps)} training steps ({_listed(found.steps)}), and a success rate holds "
            "for one policy only: give the files of one step (0.jsonl for the initial policy), or allow mixed steps"
        )
    keys = identified(dataset, keys)
    texts = prompt_texts(dataset, keys)
    sums: defaultdict[int, float] = defaultdict(float)
    trials: Counter[int] = Counter()
    unmatched, shared = [], []
    candidates = by_ground_truth(texts)
    for (truth, rendered), count in found.counts.items():
        slots = matching_slots(squeeze(rendered), candidates.get(truth, ()), texts)
        if not slots:
            unmatched.append(rendered)
        elif len(slots) > 1:
            shared.append(rendered)
        for slot in slots:
            sums[slot] += found.sums[truth, rendered]
            trials[slot] += count
    report = MatchReport(
        source=f"validation dump, {', '.join(map(str, files))}",
        prompts=keys.prompts,
        matched=len(trials),
        entry="rendered prompt",
        entries=len(found.counts),
        unmatched_entries=tuple(unmatched),
        shared_entries=tuple(shared),
        unmatched_row_U=rows_without(keys, trials),
        notes=tuple(_notes(found)),
    )
    require_some(report)
    logger.info("%s", report)
    names = [file.name for file in files]
    source = provenance(
        "validation_dump", policy=policy, sampling=sampling, date=date, files=names, steps=sorted(map(str, found.steps))
    )
    return counted(keys, sums, trials, source), report


def _notes(found: _Trials) -> Iterator[str]:
    yield f"{found.lines} lines read: {found.lines - found.repeated} trials, {found.repeated} set aside"
    if found.strange:
        yield f"{found.strange} lines have a uid that is not verl's; each counts as a trial of its own"
    if found.repeated:
        reason = "its further outputs, or a file given twice"
        yield f"{found.repeated} lines repeat a session ({reason}) and were not counted again"
    if len(found.steps) > 1:
        yield f"trials of several training steps were added up: {_listed(found.steps)}"


def _listed(steps: Mapping[Any, int]) -> str:
    return ", ".join(f"{step}: {count} trials" for step, count in steps.items())


def _collect(files: Sequence[Path], reward: RewardConfig) -> _Trials:
    found = _Trials()
    for file in files:
        for number, line in dump_lines(file):
            where = f"{file}, line {number}"
            found.lines += 1
            session = session_of(line)
            found.strange += session is None and "uid" in line
            if session is not None:
                if session in found.sessions:
                    found.repeated += 1
                    continue
                found.sessions.add(session)
            name = "score" if reward.key is None else reward.key
            group = (canonical_json(line.get("gts")), line["input"])
            found.sums[group] += unit_reward(line.get(name), reward, where, repr(name))
            found.counts[group] += 1
            found.steps[line.get("step")] += 1
    if not found.counts:
        raise SpoValuesError(f"there is no line in {', '.join(map(str, files)) or 'no file at all'}: check the paths")
    return found


def dump_lines(file: Path, *, only_dumps: bool = True) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a dump with their line numbers, from 1.

    Args:
        file: With one JSON object per line.
        only_dumps: Refuse objects without a text under ``input`` or with a ``step`` that is not a whole number.

    Raises:
        SpoValuesError: Names file and line.
    """
    for number, content in read_json_lines(file, SpoValuesError):
        where = f"{file}, line {number}"
        if not isinstance(content, dict):
            raise SpoValuesError(f"{where}: not a JSON object, so this is no file of generations")
        if only_dumps and not isinstance(content.get("input"), str):
            raise SpoValuesError(f"{where}: no text under 'input', so this is not one of verl's validation dumps")
        if only_dumps and not isinstance(content.get("step"), (int, type(None))):
            raise SpoValuesError(
                f"{where}: 'step' is {content['step']!r:.60} instead of the number of a training step, so this is not "
                "one of verl's validation dumps"
            )
        yield number, content


def is_dump_line(line: Mapping[str, Any]) -> bool:
    """Whether a row has the form that verl writes: all five columns of a dump, each of its type.

    Files of others have columns with some of these names, and what they hold is not verl's.
    """
    texts = isinstance(line.get("input"), str) and isinstance(line.get("output"), str)
    step, score = line.get("step"), line.get("score")
    numbers = isinstance(step, int) and not isinstance(step, bool) and isinstance(score, (int, float))
    return texts and numbers and "gts" in line


def session_of(line: Mapping[str, Any]) -> tuple[str, int] | None:
    """uid and session of verl's ``{uid}_{session}_{index}``, see `trajectory_of`; None where the row has none."""
    trajectory = trajectory_of(line)
    return None if trajectory is None else trajectory[:2]


def trajectory_of(line: Mapping[str, Any]) -> tuple[str, int, int] | None:
    """uid, session and index of a trajectory of verl.

    None where the row is no line of a dump (`is_dump_line`), or its ``uid`` is not verl's: a UUID and two numbers.
    verl before 0.9 writes none, and any other file may have a column of that name.
    """
    uid = line.get("uid")
    found = _TRAJECTORY.fullmatch(uid) if isinstance(uid, str) and is_dump_line(line) else None
    return None if found is None else (found[1], int(found[2]), int(found[3]))


def by_ground_truth(texts: Sequence[PromptText]) -> dict[bytes, list[int]]:
    """Ground truth -> its slots, those with the longest texts first; prompts without any text cannot be found."""
    slots: defaultdict[bytes, list[int]] = defaultdict(list)
    for slot, text in enumerate(texts):
        if text.pieces:
            slots[text.truth].append(slot)
    for of_truth in slots.values():
        of_truth.sort(key=lambda slot: -_length(texts[slot]))
    return slots


def _length(text: PromptText) -> int:
    return sum(map(len, text.pieces))


def matching_slots(rendered: str, slots: Sequence[int], texts: Sequence[PromptText]) -> list[int]:
    """The slots of the longest texts that are in a rendered prompt; none when two different ones tie."""
    found: list[int] = []
    for slot in slots:
        if found and _length(texts[slot]) < _length(texts[found[0]]):
            break
        if _stands_in(texts[slot].pieces, rendered):
            found.append(slot)
    return found if len({texts[slot].pieces for slot in found}) == 1 else []


def _stands_in(pieces: Sequence[str], rendered: str) -> bool:
    position = 0
    for piece in pieces:
        position = rendered.find(piece, position)
        if position < 0:
            return False
        position += len(piece)
    return True

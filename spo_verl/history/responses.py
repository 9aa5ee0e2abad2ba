"""Responses that verl dumped (``trainer.rollout_data_dir``), by uid and session.

verl writes one file per step, ``<step>.jsonl``, with one line per output; the line's ``uid`` is the trajectory's name
``{uid}_{session}_{index}`` (``trainer_base._log_rollout_data``). Only what was trained on is dumped.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from spo_verl.errors import SpoValuesError
from spo_verl.files import parse_json, text_lines
from spo_verl.history.places import configuration
from spo_verl.record.reading import Record


def dumped_responses(folder: Path, wanted: Iterable[tuple[int, str, int]]) -> dict[tuple[str, int], list[str]]:
    """(uid, session) -> the outputs of that session in order, for those that were dumped.

    Args:
        folder: ``trainer.rollout_data_dir``.
        wanted: (step, uid, session) of the rollouts.

    Raises:
        SpoValuesError: a file cannot be read, or a line that was asked for is no JSON; names file and line.
    """
    by_step: defaultdict[int, dict[str, tuple[str, int]]] = defaultdict(dict)
    for step, uid, session in wanted:
        by_step[step][f"{uid}_{session}"] = (uid, session)
    outputs: defaultdict[tuple[str, int], dict[int, str]] = defaultdict(dict)
    for step, sessions in sorted(by_step.items()):
        file = folder / f"{step}.jsonl"
        if not os.path.isfile(file):
            continue
        uids = {uid for uid, _ in sessions.values()}
        for number, line in text_lines(file, SpoValuesError, finished=True):
            # Most lines are of other prompts: they are not parsed.
            if not any(uid in line for uid in uids):
                continue
            row = parse_json(line, f"{file}, line {number}", SpoValuesError)
            name, _, index = str(row.get("uid") if isinstance(row, dict) else "").rpartition("_")
            if name in sessions and index.isascii() and index.isdigit():
                outputs[sessions[name]][int(index)] = str(row.get("output", ""))
    return {session: [texts[index] for index in sorted(texts)] for session, texts in outputs.items()}


def dump_folder(record: Record) -> Path | None:
    """Where a run dumped its responses, as its record says, or in the run's folder where that was moved here.

    None where it dumped none, or they are not on this machine.
    """
    named = configuration(record).get("trainer.rollout_data_dir")
    if not isinstance(named, str) or not named:
        return None
    found = (Path(named), record.path.parent / Path(named).name)
    return next((folder for folder in found if os.path.isdir(folder)), None)

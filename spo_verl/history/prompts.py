"""One prompt: found by key, row or text, and its whole history."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from spo_verl.history.places import HistoryError, Place
from spo_verl.history.responses import dump_folder, dumped_responses
from spo_verl.history.states import PromptStates, hex_of
from spo_verl.history.summaries import uncertainty
from spo_verl.history.texts import Texts

_KEY = re.compile(r"[0-9a-f]{6,32}")
COLUMNS = ("step", "uid", "session", "version_dispatch", "version_first", "version_last", "value", "n_eff", "reward",
           "raw_advantage", "advantage", "divergence", "rho", "ending", "tokens", "seconds")  # fmt: skip
"""What is known of each rollout."""


def find_prompts(query: str, states: PromptStates, texts: Texts) -> list[str]:
    """Keys of the prompts that a query means.

    Args:
        query: a key (or its first 6 digits or more), a row of the dataset, or words of the text.
        states, texts: of the run or checkpoint.

    Raises:
        HistoryError: none does; says where was looked.
        SpoConfigError: training files cannot be read.
    """
    words = query.strip()
    if not words:
        raise HistoryError("an empty text names no prompt: give a key, a row of the dataset, or words of the text.")
    keys = hex_of(states.key_P)
    present = set(keys)
    row = re.fullmatch(r"[0-9]{1,18}", words)
    if row and (of_row := texts.key_of_row(int(words))) in present:
        return [str(of_row)]
    if _KEY.fullmatch(words.lower()) and (by_key := [key for key in keys if key.startswith(words.lower())]):
        return by_key
    if row:
        raise HistoryError(_not_there(f"no prompt is in row {words}", states, texts))
    if re.fullmatch("[0-9a-f]{32}", words.lower()):
        raise HistoryError(f"none of the {len(keys)} prompts has the key {words}: check it, or search by text.")
    found = [key for key in texts.search(words) if key in present]
    if not found:
        raise HistoryError(_not_there(f"no prompt says {words[:80]!r}", states, texts))
    return found


def _not_there(what: str, states: PromptStates, texts: Texts) -> str:
    if not texts.known:
        return f"{what} as far as can be seen: a checkpoint alone has keys only; name the training files with --data."
    where = "the record" if not texts.files else "record and training files"
    return f"{what} in {where} ({len(states)} prompts): look at `spo-verl tracker show`, or name files with --data."


def prompt_history(
    place: Place, key: str, states: PromptStates, texts: Texts, responses: Path | None = None
) -> dict[str, Any]:
    """All that is known of a prompt, as plain data.

    Args:
        place, states, texts: of the run or checkpoint.
        key: the prompt, 32 hexadecimal digits.
        responses: folder of dumped responses; by default the record's ``trainer.rollout_data_dir``.

    Returns:
        ``key``, ``row``, ``data_source``, ``text``; ``step`` and, as of it, ``value``, ``n_eff``, ``uncertainty``,
        ``draws``, ``visits``; ``rollouts``: one dictionary for each that ended, in order, with ``COLUMNS`` and
        ``response`` (a list of outputs; None where none was dumped); ``dropped_through_step``: the record holds later
        steps only, None for all. Without a record ``rollouts`` is None.

    Raises:
        SpoValuesError: dumped responses cannot be read.
    """
    at = hex_of(states.key_P).index(key)
    text = texts.of([key])[key]
    value, n_eff = states.value_P[at], states.n_eff_P[at]
    row = int(states.row_P[at]) if states.row_P is not None and states.row_P[at] >= 0 else text.row
    answer: dict[str, Any] = {
        "key": key,
        "row": row,
        "data_source": text.data_source,
        "text": text.text,
        "step": states.step,
        "source": states.source,
        "value": float(value),
        "n_eff": float(n_eff),
        "uncertainty": float(uncertainty(value, n_eff)),
        "draws": int(states.draws_P[at]),
        "visits": int(states.visits_P[at]),
        "has_evidence": bool(states.known_P[at]),
        "rollouts": None,
    }
    if states.initial_P is not None and np.isfinite(states.initial_P[at]):
        answer["initial_value"] = float(states.initial_P[at])
    if place.record is None:
        return answer
    rollouts = _rollouts(place, key, states.step)
    folder = responses or dump_folder(place.record)
    found = {}
    if folder is not None:
        wanted = [(one["step"], one["uid"], one["session"]) for one in rollouts if one["session"] is not None]
        found = dumped_responses(folder, wanted)
    answer["dropped_through_step"] = place.record.run.get("dropped_through_step")
    answer["rollouts"] = [one | {"response": found.get((one["uid"], one["session"]))} for one in rollouts]
    return answer


def _rollouts(place: Place, key: str, step: int) -> list[dict[str, Any]]:
    """The prompt's rows in the record, by step; those up to the step where a checkpoint was named."""
    import pyarrow.compute as pc

    table = place.require_record().rollouts(["key", *COLUMNS])
    table = table.filter(pc.equal(table["key"], key)).select(COLUMNS)
    rows = [row for row in table.to_pylist() if not place.named_checkpoint or row["step"] <= step]
    return sorted(rows, key=lambda row: row["step"])

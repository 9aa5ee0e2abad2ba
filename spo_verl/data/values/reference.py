"""The ``offline_values.json`` of the reference recipe: prompt text -> list of scores."""

import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spo_verl.config import RewardConfig
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
from spo_verl.files import read_json

logger = logging.getLogger(__name__)


def from_reference_json(
    path: str | Path,
    dataset: Any,
    *,
    keys: DatasetKeys | None = None,
    reward: RewardConfig | None = None,
    policy: str | None = None,
    sampling: Mapping[str, Any] | None = None,
    date: str | None = None,
) -> tuple[OfflineValues, MatchReport]:
    """Read the reference recipe's file for a dataset.

    The recipe knows a prompt by the stripped content of its first message. A text that no prompt has there is also
    looked for among the last user messages, white space aside, as the recipe cuts it out of the rendered prompt: that
    finds prompts with a system message. Several prompts with one text (equal questions with other answers or media)
    are all given its scores, and reported. All scores count; the recipe keeps 8 of them at random.

    Args:
        path: The JSON file.
        dataset: The training dataset: verl's RLHFDataset, a bare `datasets.Dataset`, or any map-style one.
        keys: Its keys, where they are known already.
        reward: Range of the scores, mapped to [0, 1]. Default: the recipe's rule, a score above 0 is a success.
        policy, sampling, date: For the provenance, as in `provenance`.

    Returns:
        The values, and what matched; an entry is a prompt text.

    Raises:
        SpoValuesError: The file is missing or is not a mapping of texts to lists of numbers, or nothing matches.
        SpoRewardError: A score is NaN, or outside the range of ``reward``.
    """
    scores_of_text = _read(Path(path))
    keys = identified(dataset, keys)
    slots_by_first, slots_by_user = _indexes(prompt_texts(dataset, keys))
    sums: defaultdict[int, float] = defaultdict(float)
    trials: Counter[int] = Counter()
    unmatched, shared, empty = [], [], 0
    for text, scores in scores_of_text.items():
        slots = slots_by_first.get(text.strip()) or slots_by_user.get(squeeze(text)) or []
        empty += not scores
        if not slots:
            unmatched.append(text)
        elif len(slots) > 1:
            shared.append(text)
        total = _total(text, scores, reward)
        for slot in slots if scores else ():
            sums[slot] += total
            trials[slot] += len(scores)
    report = MatchReport(
        source=f"offline values of the reference recipe, {path}",
        prompts=keys.prompts,
        matched=len(trials),
        entry="prompt text",
        entries=len(scores_of_text),
        unmatched_entries=tuple(unmatched),
        shared_entries=tuple(shared),
        unmatched_row_U=rows_without(keys, trials),
        notes=(f"{empty} texts have an empty list of scores",) if empty else (),
    )
    require_some(report)
    logger.info("%s", report)
    source = provenance("reference_json", policy=policy, sampling=sampling, date=date, file=Path(path).name)
    return counted(keys, sums, trials, source), report


def _total(text: str, scores: Sequence[Any], reward: RewardConfig | None) -> float:
    where = f"the text {text[:80]!r}"
    if reward is not None:
        return sum(unit_reward(score, reward, where, "a score") for score in scores)
    anything = RewardConfig(low=-sys.float_info.max, high=sys.float_info.max)
    for score in scores:
        unit_reward(score, anything, where, "a score")
    return float(sum(score > 0 for score in scores))


def _read(path: Path) -> dict[str, list[Any]]:
    content = read_json(path, SpoValuesError)
    if not isinstance(content, dict) or not all(isinstance(scores, list) for scores in content.values()):
        raise SpoValuesError(
            f"{path} must hold one JSON object, prompt text -> list of scores, as the reference recipe's "
            "merge_offline_values.py writes it; verl's own dumps (one JSON object per line) are imported as such"
        )
    return content


def _indexes(texts: Sequence[PromptText]) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    by_first: defaultdict[str, list[int]] = defaultdict(list)
    by_user: defaultdict[str, list[int]] = defaultdict(list)
    for slot, text in enumerate(texts):
        by_first[text.first].append(slot)
        if text.last_user:
            by_user[text.last_user].append(slot)
    return by_first, by_user

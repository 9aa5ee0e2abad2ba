"""What a prompt says, for sources that know prompts by their text."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spo_verl.data.canonical import canonical_json
from spo_verl.data.columns import column_batches, table_of
from spo_verl.data.identity import DatasetKeys, RowFields, dataset_keys
from spo_verl.data.values.values_table import OfflineValues
from spo_verl.errors import SpoConfigError

# verl replaces these in a message's text by the media, and rendering them leaves special tokens only.
_MEDIA_MARKS = re.compile("<image>|<video>|<audio>")


@dataclass(frozen=True)
class PromptText:
    """The texts of one prompt.

    Attributes:
        first: Stripped content of the first message.
        last_user: Content of the last user message, squeezed (`squeeze`); "" without one.
        pieces: Squeezed texts of all messages that the model did not write itself, in order, cut at media.
        truth: The ground truth, canonically encoded.
    """

    first: str
    last_user: str
    pieces: tuple[str, ...]
    truth: bytes


def squeeze(text: str) -> str:
    """The text in Unicode's composed form without white space.

    Chat templates trim contents, some tokenizers compose characters and some remove blanks before punctuation when
    they decode; none of that tells prompts apart.
    """
    return "".join(unicodedata.normalize("NFC", text).split())


def identified(dataset: Any, keys: DatasetKeys | None) -> DatasetKeys:
    """The keys as given, if they are of as many rows as the dataset has; otherwise `dataset_keys`."""
    if keys is None:
        return dataset_keys(dataset)
    if keys.rows != len(dataset):
        raise SpoConfigError(f"the keys are of {keys.rows} rows and the dataset has {len(dataset)}: pass its own keys")
    return keys


def prompt_texts(dataset: Any, keys: DatasetKeys) -> list[PromptText]:
    """The texts of every prompt, in slot order, read in batches and without decoding media."""
    column = RowFields.of(dataset).prompt
    texts = []
    rows = first_rows(dataset, keys, {column: None, "reward_model": ("ground_truth",)})
    for number, row in zip(keys.row_of_slot_P.tolist(), rows, strict=True):
        section = row.get("reward_model")
        truth = section.get("ground_truth") if isinstance(section, Mapping) else None
        messages = row.get(column)
        messages = row.get("raw_prompt") if messages is None else messages
        if not _are_messages(messages):
            raise SpoConfigError(
                f"row {number} of the dataset, field {column!r}: {messages!r:.60} instead of messages with role and "
                "content. Correct the row, or name the column of messages with --prompt-key (data.prompt_key)."
            )
        texts.append(_text_of(messages, truth))
    return texts


def first_rows(
    dataset: Any, keys: DatasetKeys, columns: Mapping[str, tuple[str, ...] | None]
) -> Iterator[Mapping[str, Any]]:
    """The first row of every prompt, in slot order.

    Args:
        dataset: Any map-style dataset.
        keys: Its keys.
        columns: Column -> the members of interest where it is a struct, or None for all. A dataset without a table
            serves whole items.
    """
    wanted = iter(keys.row_of_slot_P.tolist())
    next_row = next(wanted, None)
    table = table_of(dataset)
    if table is None:
        yield from (dataset[row] for row in keys.row_of_slot_P.tolist())
        return
    members = {name: kept for name, kept in columns.items() if kept is not None}
    for start, batch in column_batches(table, columns, members):
        size = len(next(iter(batch.values()), ()))
        while next_row is not None and next_row < start + size:
            yield {name: values[next_row - start] for name, values in batch.items()}
            next_row = next(wanted, None)


def counted(
    keys: DatasetKeys, reward_sum: Mapping[int, float], trials: Mapping[int, int], source: dict[str, Any]
) -> OfflineValues:
    """Offline values of the slots that have an entry in ``trials``, in slot order."""
    slot_N = np.array(sorted(trials), dtype=np.int64)
    trials_N = np.array([trials[slot] for slot in slot_N.tolist()], dtype=np.int64)
    sum_N = np.array([reward_sum[slot] for slot in slot_N.tolist()], dtype=np.float64)
    return OfflineValues(keys.key_P[slot_N], sum_N, trials_N, (source,))


def rows_without(keys: DatasetKeys, trials: Mapping[int, int]) -> np.ndarray:
    """First dataset row of every slot that has no entry in ``trials``."""
    missing_P = np.ones(keys.prompts, dtype=bool)
    missing_P[np.fromiter(trials, dtype=np.int64, count=len(trials))] = False
    return np.asarray(keys.row_of_slot_P[missing_P])


def _are_messages(messages: Any) -> bool:
    if isinstance(messages, (str, Mapping)):
        return True
    if not isinstance(messages, Iterable) or isinstance(messages, (bytes, bytearray)):
        return False
    listed = list(messages)
    return bool(listed) and all(
        isinstance(one, str) or (isinstance(one, Mapping) and _is_content(one.get("content"))) for one in listed
    )


def _is_content(content: Any) -> bool:
    return content is None or (isinstance(content, Iterable) and not isinstance(content, (bytes, bytearray)))


def last_user_message(messages: Any) -> str:
    """Content of the last user message as it was written, with a mark for each medium; "" without one."""
    if not _are_messages(messages):
        return ""
    return next((_content(one.get("content")) for one in reversed(_spoken(messages)) if _is_users(one)), "")


def _spoken(messages: Any) -> list[Mapping[str, Any]]:
    listed = [messages] if isinstance(messages, (str, Mapping)) else list(messages)
    return [({"content": one} if isinstance(one, str) else one) for one in listed]


def _is_users(message: Mapping[str, Any]) -> bool:
    return bool(message.get("role", "user") == "user")


def _text_of(messages: Any, truth: Any) -> PromptText:
    spoken = _spoken(messages)
    texts = [_content(one.get("content")) for one in spoken]
    asked = [text for one, text in zip(spoken, texts, strict=True) if _is_users(one)]
    given = [text for one, text in zip(spoken, texts, strict=True) if one.get("role") != "assistant"]
    pieces = (squeeze(piece) for text in given for piece in _MEDIA_MARKS.split(text))
    return PromptText(
        first=texts[0].strip(),
        last_user=squeeze(asked[-1]) if asked else "",
        pieces=tuple(piece for piece in pieces if piece),
        truth=canonical_json(truth),
    )


def _content(content: Any) -> str:
    """The text of a message; of a content in parts, their texts, with a mark for each medium between them."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = [part if isinstance(part, Mapping) else {"text": str(part)} for part in content]
    return "".join("<image>" if part.get("text") is None else str(part["text"]) for part in parts)

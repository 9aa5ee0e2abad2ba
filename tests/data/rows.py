"""Small rows in verl's schema, and keys made of numbers."""

import hashlib
from collections.abc import Sequence

import datasets
import numpy as np


def row(question, answer="1", **more):
    """One row; ``question`` is the user's message or the whole list of messages."""
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
    return {
        "data_source": "arithmetic",
        "prompt": messages,
        "reward_model": {"style": "rule", "ground_truth": answer},
    } | more


def table(*rows):
    """A bare Hugging Face table of rows."""
    return datasets.Dataset.from_list(list(rows))


def keys(names: int | Sequence[int]) -> np.ndarray:
    """Keys of the prompts with these numbers, or of the first so many."""
    numbers = range(names) if isinstance(names, int) else names
    digests = [hashlib.blake2b(str(number).encode(), digest_size=16).digest() for number in numbers]
    return np.frombuffer(b"".join(digests), dtype="V16")


def counts(values) -> dict[bytes, tuple[float, int]]:
    """Key -> (successes, trials)."""
    pairs = zip(values.successes_N.tolist(), values.trials_N.tolist(), strict=True)
    return dict(zip((key.tobytes() for key in values.key_N), pairs, strict=True))


def by_slot(values, dataset_keys) -> list[tuple[float, int] | None]:
    """(successes, trials) of every prompt in slot order, None where it has no entry."""
    found = counts(values)
    return [found.get(key.tobytes()) for key in dataset_keys.key_P]

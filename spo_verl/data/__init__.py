"""Prompts as data: which prompt a row is, and which rows are trained on next."""

from spo_verl.data.canonical import NotCanonicalError, canonical_json
from spo_verl.data.identity import (
    IDENTITY_VERSION,
    KEY_BYTES,
    DatasetKeys,
    RowFields,
    content_key,
    dataset_keys,
    prompt_key,
)
from spo_verl.data.loader import DrawSource, PrioritizedDataLoader, is_foreign_state
from spo_verl.data.prompt_sources import prompt_sources

__all__ = [
    "IDENTITY_VERSION",
    "KEY_BYTES",
    "DatasetKeys",
    "DrawSource",
    "NotCanonicalError",
    "PrioritizedDataLoader",
    "RowFields",
    "canonical_json",
    "content_key",
    "dataset_keys",
    "is_foreign_state",
    "prompt_key",
    "prompt_sources",
]

"""What prompts say: from the record, or from the training files by key."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from spo_verl.history.places import configuration
from spo_verl.history.states import hex_of, prompts_of
from spo_verl.record.reading import Record


@dataclass(frozen=True)
class PromptText:
    """One prompt: its row in the dataset, its data source, and its last user message; None where unknown."""

    row: int | None = None
    data_source: str | None = None
    text: str | None = None


class Texts:
    """Texts of prompts by key.

    The record is asked first. Training files are read only where it has no text: they are identified row by row, which
    takes about a minute for a million rows.

    Args:
        record: of the run, or None.
        files: training files; by default those that the record's run names, where they are on this machine.
        prompt_key: column of the messages; by default that of the record's run, or ``prompt``.
    """

    def __init__(self, record: Record | None, files: Sequence[Path] = (), prompt_key: str | None = None) -> None:
        self._record = record
        self._files = list(files)
        self._prompt_key = prompt_key

    def of(self, keys: Iterable[str]) -> dict[str, PromptText]:
        """What is known of these prompts.

        Raises:
            SpoConfigError: training files cannot be read.
        """
        wanted = list(dict.fromkeys(keys))
        found = {}
        if self._recorded is not None and wanted:
            chosen = self._recorded.filter(pc.is_in(self._recorded["key"], pa.array(wanted, pa.string())))
            found = {row["key"]: PromptText(row["row"], row["data_source"], row["text"]) for row in chosen.to_pylist()}
        lacking = [key for key in wanted if key not in found or found[key].text is None]
        if lacking and self.files:
            found |= {key: self._read[key] for key in lacking if key in self._read}
        return {key: found.get(key, PromptText()) for key in wanted}

    def search(self, words: str) -> list[str]:
        """Keys of the prompts whose text holds these words; case and white space do not count.

        Raises:
            SpoConfigError: training files cannot be read.
        """
        squeezed, found, recorded = _squeezed(words), [], self._recorded
        if recorded is not None:
            pattern = r"\s+".join(re.escape(word) for word in squeezed.split())
            matches = pc.match_substring_regex(recorded["text"], pattern, ignore_case=True)
            found = recorded["key"].filter(pc.fill_null(matches, fill_value=False)).to_pylist()
        if self.files and (recorded is None or recorded["text"].null_count):
            without = (
                set() if recorded is None else set(recorded.filter(pc.is_valid(recorded["text"]))["key"].to_pylist())
            )
            texts = ((key, one.text or "") for key, one in self._read.items() if key not in without)
            found += [key for key, text in texts if squeezed in _squeezed(text)]
        return found

    def key_of_row(self, row: int) -> str | None:
        """Key of the prompt in this row of the dataset; of several rows with one prompt, the first leads to it."""
        if self._recorded is not None:
            keys = self._recorded.filter(pc.equal(self._recorded["row"], row))["key"]
            if len(keys):
                return str(keys[0])
        return self._key_of_row.get(row) if self.files else None

    @property
    def known(self) -> bool:
        """Whether there is anything to look texts up in."""
        return self._record is not None or bool(self.files)

    @cached_property
    def files(self) -> list[Path]:
        """The training files that texts can be read from."""
        if self._files or self._record is None:
            return self._files
        named = configuration(self._record).get("data.train_files")
        listed = [one for one in ([named] if isinstance(named, str) else named or []) if isinstance(one, str)]
        return [Path(file) for file in listed] if all(os.path.isfile(file) for file in listed) else []

    @cached_property
    def _recorded(self) -> pa.Table | None:
        """The record's prompts; None where it has none."""
        table = None if self._record is None else prompts_of(self._record)
        return table if table is not None and table.num_rows else None

    @cached_property
    def _read(self) -> dict[str, PromptText]:
        return self._from_files[0]

    @cached_property
    def _key_of_row(self) -> dict[int, str]:
        return self._from_files[1]

    @cached_property
    def _from_files(self) -> tuple[dict[str, PromptText], dict[int, str]]:
        """Texts by key, and key by row, of the training files."""
        if not self.files:
            return {}, {}
        from spo_verl.data.data_files import Columns, DataFiles
        from spo_verl.data.identity import dataset_keys
        from spo_verl.data.values.prompt_texts import first_rows, last_user_message

        column = self._prompt_key or str(configuration(self._record).get("data.prompt_key") or "prompt")
        dataset = DataFiles(self.files, Columns(prompt=column))
        keys = dataset_keys(dataset)
        names = hex_of(keys.key_P)
        rows = zip(
            keys.row_of_slot_P.tolist(), first_rows(dataset, keys, {column: None, "data_source": None}), strict=True
        )
        texts = {
            name: PromptText(row, _text(content.get("data_source")), last_user_message(content.get(column)))
            for name, (row, content) in zip(names, rows, strict=True)
        }
        return texts, {row: names[slot] for row, slot in enumerate(keys.slot_of_row_N.tolist())}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _squeezed(text: str) -> str:
    return " ".join(text.lower().split())

"""Training files as a dataset whose prompts have the same identity as in verl's RLHFDataset, without a tokenizer."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spo_verl.data.libraries import library_faults, literally, reason_of
from spo_verl.errors import SpoConfigError
from spo_verl.files import require_rows

_BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json"}


@dataclass(frozen=True)
class Columns:
    """The names that verl's ``data.prompt_key`` and so on give to columns."""

    prompt: str = "prompt"
    image: str = "images"
    video: str = "videos"
    audio: str = "audios"


class DataFiles:
    """Rows of training files, read as verl reads them; nothing is tokenized, decoded or filtered by length."""

    def __init__(self, files: Sequence[Path], columns: Columns | None = None) -> None:
        columns = columns or Columns()
        self.dataframe = _read(files)
        self.prompt_key = columns.prompt
        self.image_key = columns.image
        self.video_key = columns.video
        self.audio_key = columns.audio

    def __len__(self) -> int:
        return len(self.dataframe)

    def __getitem__(self, row: int) -> Any:
        return self.dataframe[row]


def _read(files: Sequence[Path]) -> Any:
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    tables = []
    for file in files:
        if file.suffix not in _BUILDERS:
            known = ", ".join(_BUILDERS)
            raise SpoConfigError(
                f"{file}: training data are files with one of the endings {known}, as verl reads them."
            )
        if not os.path.lexists(file):
            raise SpoConfigError(f"there are no training data at {file.absolute()}: check --data.")
        require_rows(file, SpoConfigError)
        try:
            tables.append(datasets.load_dataset(_BUILDERS[file.suffix], data_files=[literally(file)])["train"])
        except library_faults() as error:
            raise SpoConfigError(
                f"{file} cannot be read ({reason_of(error)}): restore it, or convert it again."
            ) from error
    try:
        return datasets.concatenate_datasets(tables)
    except library_faults() as error:
        raise SpoConfigError(
            f"the files given to --data have different columns ({reason_of(error)}): give those of one kind."
        ) from error

"""Problems from public sources as training and evaluation files in verl's columns: docs/data.md.

| module | what it holds |
|---|---|
| ``published`` | the public sources and their releases: hub ids, columns, rules |
| ``own_source`` | a source of the user's own, by the names of its columns |
| ``streams`` | rows from the hub, a folder or files, streamed |
| ``local_files`` | JSON and CSV files, with the values as they are written |
| ``problems``, ``answers``, ``problem_texts`` | a row as problem and answer; when two problems are the same |
| ``prompt_lengths`` | prompts in tokens |
| ``templates`` | the instructions after a problem |
| ``pipeline`` | all of it together: `prepare` |
| ``writing``, ``prepare_report`` | the Parquet file and what it says about itself |
| ``checking`` | is a file what it should be: `check_file`, `check_source` |
| ``overlap`` | problems that are in training and evaluation files: `overlap` |
"""

from spo_verl.data.prepare.checking import CheckReport, check_file, check_source
from spo_verl.data.prepare.data_errors import RowError, SpoDataError
from spo_verl.data.prepare.overlap import FileOverlap, OverlapReport, overlap
from spo_verl.data.prepare.own_source import named_source
from spo_verl.data.prepare.pipeline import prepare
from spo_verl.data.prepare.prepare_report import PrepareReport, stored_report
from spo_verl.data.prepare.prompt_lengths import PromptLimit
from spo_verl.data.prepare.published import SOURCES, Release, Source, find_source
from spo_verl.data.prepare.templates import TEMPLATES, Template, find_template

__all__ = [
    "SOURCES",
    "TEMPLATES",
    "CheckReport",
    "FileOverlap",
    "OverlapReport",
    "PrepareReport",
    "PromptLimit",
    "Release",
    "RowError",
    "Source",
    "SpoDataError",
    "Template",
    "check_file",
    "check_source",
    "find_source",
    "find_template",
    "named_source",
    "overlap",
    "prepare",
    "stored_report",
]

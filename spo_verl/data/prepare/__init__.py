"""Problems from public sources as training and evaluation files in verl's columns: docs/data.md.

| module | what it holds |
|---|---|
| ``published`` | the sources and their releases: hub ids, columns, rules |
| ``streams`` | rows from the hub, a folder or files, streamed |
| ``problems``, ``answers``, ``problem_texts`` | a row as problem and answer; when two problems are the same |
| ``templates`` | the instructions behind a problem |
| ``pipeline`` | all of it together: `prepare` |
| ``writing``, ``prepare_report`` | the Parquet file and what it says about itself |
| ``checking`` | is a file what it should be: `check_file`, `check_source` |
| ``overlap`` | problems that stand in training and evaluation files: `overlap` |
"""

from spo_verl.data.prepare.checking import CheckReport, check_file, check_source
from spo_verl.data.prepare.data_errors import RowError, SpoDataError
from spo_verl.data.prepare.overlap import FileOverlap, OverlapReport, overlap
from spo_verl.data.prepare.pipeline import prepare
from spo_verl.data.prepare.prepare_report import PrepareReport, stored_report
from spo_verl.data.prepare.published import SOURCES, Release, Source, find_source
from spo_verl.data.prepare.templates import TEMPLATES, Template, find_template

__all__ = [
    "SOURCES",
    "TEMPLATES",
    "CheckReport",
    "FileOverlap",
    "OverlapReport",
    "PrepareReport",
    "Release",
    "RowError",
    "Source",
    "SpoDataError",
    "Template",
    "check_file",
    "check_source",
    "find_source",
    "find_template",
    "overlap",
    "prepare",
    "stored_report",
]

"""The record of a run: what happened to every rollout and prompt, and the numbers of every step, in Parquet files.

:mod:`~spo_verl.record.schema` has the columns, :mod:`~spo_verl.record.writing` the writer that a trainer feeds,
:mod:`~spo_verl.record.reading` the reader. docs/record.md shows how to read the files with other libraries.
"""

from spo_verl.record.reading import Record
from spo_verl.record.writing import RecordWriter

__all__ = ["Record", "RecordWriter"]

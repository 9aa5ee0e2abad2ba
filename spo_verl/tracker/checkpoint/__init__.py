"""A tracker on disk and back.

| file | what it holds |
|---|---|
| ``schema`` | what the files are called, and their columns |
| ``folder`` | the folder: manifest, checksums, how it appears at once or not at all |
| ``snapshot`` | the state at one moment, its digest, and how it is written |
| ``reading`` | a folder verified and read |
| ``reconcile`` | what was read meets the dataset and the settings of now |
"""

from spo_verl.tracker.checkpoint.reading import Saved, read, read_prompts
from spo_verl.tracker.checkpoint.snapshot import Snapshot

__all__ = ["Saved", "Snapshot", "read", "read_prompts"]

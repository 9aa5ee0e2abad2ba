"""Crashes: runs that are killed or meet a broken disk, and what is there afterwards.

| file | what it holds |
|---|---|
| ``plan`` | what happens to which run, from a seed |
| ``journal`` | what a training process fed to its tracker, and what must follow from it |
| ``process`` | a training process: verl's trainer with SPO, its checkpoints and the record, without engines |
| ``disks`` | a disk of a run's own, which can be filled or made read-only |
| ``judging`` | checkpoint and record of a run against its journal |
| ``marker`` | which step a run continues from |
| ``campaign`` | runs that meet what is planned, and a ledger of it |
| ``real`` | real launches of verl, whose processes are killed |
| ``ledger`` | the lines of both |
| ``page`` | the tables of ``docs/reliability.md`` from the ledgers |

    python -m tests.crash --cases 2000 --seed 0
    python -m tests.crash.real --cases 20 --seed 0 --mode sync --ledger FILE
"""

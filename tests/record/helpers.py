"""Rows and writers for the tests of the record."""

from pathlib import Path

import numpy as np

from spo_verl.record import RecordWriter


def rows(step: int, count: int = 3, *, wide: bool = False):
    """Rows of a step; each uid says step and number. ``wide`` ones hardly compress."""
    rng = np.random.default_rng(step)
    names = [f"{step}-{number}" + (rng.bytes(200).hex() if wide else "") for number in range(count)]
    return {
        "uid": names,
        "session": np.zeros(count, dtype=np.int64),
        "key": [f"{number:032x}" for number in range(count)],
        "slot": np.arange(count),
        "row": np.arange(count),
        "data_source": ["a"] * count,
        "version_dispatch": np.full(count, step - 1),
        "version_first": np.ma.masked_less(np.full(count, step % 2 - 1), 0),
        "version_last": [None] * count,
        "value": np.full(count, 0.5),
        "n_eff": np.full(count, 1.0),
        "reward": np.array([np.nan, *[1.0] * (count - 1)]),
        "raw_advantage": np.full(count, 0.5),
        "advantage": np.full(count, 1.0),
        "divergence": np.full(count, np.nan),
        "rho": np.full(count, 0.9),
        "ending": ["failed", *["trained"] * (count - 1)],
        "tokens": np.full(count, 7),
        "seconds": np.full(count, 0.5),
    }


def write(folder: Path, steps, *, cut_every: int = 0, limit: int = 2**30, after: int = 0, **options) -> RecordWriter:
    """A writer that has begun after a step, and has been passed the rows of these steps."""
    writer = RecordWriter(folder, limit, **options)
    writer.resume(after)
    writer.describe({"start": {"step": after}})
    for step in steps:
        writer.append(step, rows(step))
        if cut_every and step % cut_every == 0:
            writer.cut(step)
        writer.append_step(step, {"a": step, "text": "no number"})
    return writer


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def names(folder: Path, kind: str) -> list[tuple[int, int]]:
    """Steps of the parts of a kind."""
    parts = sorted(folder.glob(f"{kind}-*.parquet"))
    return [tuple(map(int, path.stem.split("-")[1:])) for path in parts]

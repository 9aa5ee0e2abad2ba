"""The notebooks run, and say of a made run what it is; they are kept without outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from tests.docs.pages import DOCS
from tests.support.records import made_run

pytestmark = pytest.mark.long

FOLDER = DOCS / "notebooks"


def executed(name: str, last: str, folder: Path) -> list[str]:
    """The lines that one more cell prints after those of the notebook."""
    notebook = nbformat.read(FOLDER / name, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(last))
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    return "".join(output["text"] for output in notebook.cells[-1].outputs).splitlines()


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.ipynb")), ids=lambda file: file.stem)
def test_a_notebook_is_kept_without_outputs(file: Path) -> None:
    cells = nbformat.read(file, as_version=4).cells
    assert [cell.outputs for cell in cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)] == []


def test_the_record_in_pandas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_run(tmp_path / "run", mode="separate_async", sessions=2)
    monkeypatch.setenv("SPO_RUN", str(made.folder))
    seen = executed("record.ipynb", "print(len(rollouts), scored.reward.sum(), len(history), times.iloc[0])", tmp_path)
    rewards = [row["reward"] for row in made.rows if row["reward"] is not None]
    keys = [row["key"] for row in made.rows]
    often = max(map(keys.count, keys))
    slowest = np.mean([numbers["timing_s/step"] for numbers in made.numbers.values()])
    assert seen == [f"{len(made.rows)} {sum(rewards)} {often} {slowest}"]


def test_the_tracker_alone(tmp_path: Path) -> None:
    [seen] = executed(
        "tracker.ipynb", "print(error, constant, tracker.version, tracker.counters['dispatched'])", tmp_path
    )
    error, constant, _, dispatched = seen.split()
    assert 0 < float(error) < 0.6 * float(constant)
    assert dispatched == "6400"

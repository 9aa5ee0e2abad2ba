"""Python in pages runs, and the importing commands of the reference recipe's page do what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spo_verl.data.values import OfflineValues
from tests.cli.helpers import row, run, write_rows
from tests.docs.commands import spo_verl_lines
from tests.docs.pages import DOCS, PAGES, REPOSITORY, blocks, name_of

pytestmark = pytest.mark.long

WITH_PYTHON = [page for page in PAGES if blocks(page.read_text(), "python")]
# What a page takes for granted: names that its reader has.
BEFORE = {
    "docs/howto-reference-recipe.md": """
dataset = [
    {
        "raw_prompt": [{"role": "user", "content": question}],
        "data_source": "arithmetic",
        "reward_model": {"style": "rule", "ground_truth": answer},
    }
    for question, answer in (("1 + 1", "2"), ("2 + 2", "4"), ("5 + 5", "10"))
]
""",
    "docs/offline-values.md": """
dataset = [{"prompt": [{"role": "user", "content": text}]} for text in ("1 + 1", "2 + 2")]
successes_P, trials_P = [3, 8], [8, 8]
""",
    "docs/record.md": f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
from pathlib import Path
from tests.support.records import made_run
made_run(Path("run1"), mode="separate_async", prompts=60, steps=6, batch=16)
""",
    "docs/data-sources.md": """
names = ("code", "math", "math", "math")
dataset = [{"prompt": [{"role": "user", "content": str(n)}], "data_source": names[n % 4]} for n in range(4000)]
""",
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with the files that the pages name."""
    rows = [row("1 + 1", "2"), row("2 + 2", "4"), row("1 + 1", "2"), row("3 + 3", "6")]
    write_rows(tmp_path / "train.parquet", rows)
    write_rows(tmp_path / "newer.parquet", [*rows[1:], row("4 + 4", "8")])
    scores = {"1 + 1": [1, 1, -1, 1, 1, 1, 1, 1, -1, 1], "2 + 2": [0, 1], "What is this?": [1]}
    (tmp_path / "offline_values.json").write_text(json.dumps(scores))
    return tmp_path


def run_python(page: Path, text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a page's blocks in order, in one process; files among them are written first."""
    scripts = [BEFORE.get(name_of(page), "")]
    for block in blocks(text, "python"):
        compile(block.text, f"{page.name}, a block", "exec")
        if block.file:
            (folder / block.file).write_text(block.text)
            scripts.append(f"import {Path(block.file).stem}")
        elif block.is_run:
            scripts.append(block.text)
    environment = {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "\n".join(scripts)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_the_python_of_a_page_runs(page, folder):
    done = run_python(page, page.read_text(), folder)
    assert done.returncode == 0, done.stderr[-3000:]
    if name_of(page) == "docs/howto-datasets.md":
        printed = done.stdout.splitlines()
        assert printed[0] == "4 rows, 3 prompts, 1 duplicates"
        assert printed[1].startswith("[0 1 0 2] ")
        assert printed[2:] == ["3 known, 1 new, 0 kept aside"]


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ("from spo_verl.data import no_such_name", "no_such_name"),
        ("# file: broken.py\nimport nothing_of_the_kind", "nothing_of_the_kind"),
        ("raise SystemExit('no')", "no"),
    ],
)
def test_a_block_that_does_not_run_is_found(block, complaint, tmp_path):
    done = run_python(DOCS / "none.md", f"```python\n{block}\n```\n", tmp_path)
    assert done.returncode != 0
    assert complaint in done.stderr


def test_a_block_that_says_that_it_is_not_run_must_still_compile(tmp_path):
    text = "```python\n# not run: needs a cluster\nimport nothing_of_the_kind\n```\n"
    assert run_python(DOCS / "none.md", text, tmp_path).returncode == 0
    with pytest.raises(SyntaxError):
        run_python(DOCS / "none.md", text.replace("import ", "import import "), tmp_path)


def test_the_commands_of_the_reference_recipes_page(folder, monkeypatch):
    monkeypatch.chdir(folder)
    page = DOCS / "howto-reference-recipe.md"
    lines = [command.words[1:] for command in spo_verl_lines(page.read_text()) if "--data" in command.words]
    assert [line[:2] for line in lines] == [["values", "import"], ["values", "show"]]
    imported, shown = (run(*line) for line in lines)
    assert imported.exit_code == shown.exit_code == 0, imported.output
    assert "What is this?" in imported.output  # a text of no prompt is named
    assert "offline values cover 2 of 3 prompts" in shown.output
    values = OfflineValues.read(folder / "values.parquet")
    assert sorted(zip(values.successes_N.tolist(), values.trials_N.tolist(), strict=True)) == [(1.0, 2), (8.0, 10)]

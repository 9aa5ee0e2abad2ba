"""Running verbs in this process, and small training data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from typer.testing import CliRunner

from spo_verl.cli.app import app


def run(*arguments: object) -> Any:
    """Run ``spo-verl`` with these arguments; a defect's exception is raised here, not swallowed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run_json(*arguments: object) -> Any:
    """The JSON document that is the whole of stdout."""
    return json.loads(run(*arguments, "--json").stdout)


def row(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {
        "data_source": "arithmetic",
        "prompt": [{"role": "user", "content": question}],
        "reward_model": {"style": "rule", "ground_truth": answer},
        **more,
    }


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path

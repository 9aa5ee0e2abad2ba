"""Generations and their metrics in the files of lm-evaluation-harness and of lighteval: docs/evaluation.md.

The forms are those that lm-eval 0.4.13 writes with ``--log_samples`` and lighteval 0.13 with ``--save-details``: one
row per prompt with all of its responses, and one JSON document of results per run.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spo_verl.evaluation.generations import EvaluationError, Generations, Prompt
from spo_verl.evaluation.scores import Benchmark, EvaluatedRun, Evaluation
from spo_verl.files import check_output, replacing

Format = Literal["lm-eval", "lighteval"]

_NOT_IN_NAMES = re.compile(r"[^\w.-]+")
_TEXTS, _NUMBERS = pa.list_(pa.string()), pa.list_(pa.float64())
_DOC = pa.struct(
    [
        ("query", pa.string()),
        ("choices", _TEXTS),
        ("gold_index", pa.list_(pa.int64())),
        ("instruction", pa.string()),
        ("images", _TEXTS),
        ("specific", pa.struct([("data_source", pa.string())])),
        ("unconditioned_query", pa.string()),
        ("original_query", pa.string()),
        ("id", pa.string()),
        ("task_name", pa.string()),
        ("fewshot_samples", _TEXTS),
        ("sampling_methods", _TEXTS),
        ("fewshot_sorting_class", pa.string()),
        ("generation_size", pa.int64()),
        ("stop_sequences", _TEXTS),
        ("use_logits", pa.bool_()),
        ("num_samples", pa.int64()),
        ("generation_grammar", pa.null()),
    ]
)
_MODEL_RESPONSE = pa.struct(
    [
        ("input", pa.string()),
        ("input_tokens", pa.list_(pa.int64())),
        ("text", _TEXTS),
        ("output_tokens", pa.list_(pa.list_(pa.int64()))),
        ("text_post_processed", _TEXTS),
        ("reasonings", _TEXTS),
        ("logprobs", _NUMBERS),
        ("argmax_logits_eq_gold", pa.list_(pa.bool_())),
        ("logits", pa.list_(_NUMBERS)),
        ("unconditioned_logprobs", _NUMBERS),
        ("truncated_tokens_count", pa.int64()),
        ("padded_tokens_count", pa.int64()),
    ]
)


def export(
    form: Format, generations: Sequence[Generations], evaluation: Evaluation, folder: Path, now: datetime
) -> list[Path]:
    """Write every run in one of the two forms.

    Args:
        form: whose files.
        generations: the runs, read with their texts.
        evaluation: the metrics of the same runs.
        folder: where the files go; made where it is not there.
        now: the date in their names.

    Returns:
        The files that were written.

    Raises:
        EvaluationError: a file cannot be written, or two benchmarks would have one name.
    """
    date = now.isoformat().replace(":", "-")
    write = _write_lm_eval if form == "lm-eval" else _write_lighteval
    written: list[Path] = []
    for read, run in zip(generations, evaluation.runs, strict=True):
        tasks = {source: _name(source) for source in run.benchmarks}
        if len(set(tasks.values())) < len(tasks):
            raise EvaluationError(f"{run.name}: the names of benchmarks differ in signs only: {', '.join(tasks)}")
        written += write(read, run, tasks, folder, date)
    return written


def check_folder(folder: Path) -> None:
    """Refuse a folder for exports that could not be written.

    Raises:
        EvaluationError: it is a file, or may not be written.
    """
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise EvaluationError(f"{folder} is a file: name a folder for the export")
    check_output(folder / "results.json", EvaluationError)


def _write_lm_eval(
    generations: Generations, run: EvaluatedRun, tasks: Mapping[str, str], folder: Path, date: str
) -> list[Path]:
    target = folder / _name(run.name)
    written, hashes = [], {}
    for source, task in tasks.items():
        benchmark = run.benchmarks[source]
        rows = [
            _sample(number, source, prompt, _of_prompt(benchmark, key, "lm-eval"))
            for number, (key, prompt) in enumerate(generations.prompts[source].items())
        ]
        hashes[task] = _hash("".join(row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in rows))
        file = target / f"samples_{task}_{date}.jsonl"
        with replacing(file, EvaluationError) as stage:
            stage().write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        written.append(file)
    results: dict[str, Any] = {
        "results": {
            task: {"alias": task, "sample_len": run.benchmarks[source].prompts}
            | {
                name: value
                for metric, (mean, error) in _of_benchmark(run.benchmarks[source], "lm-eval").items()
                for name, value in ((f"{metric},none", mean), (f"{metric}_stderr,none", _or(error, "N/A")))
            }
            for source, task in tasks.items()
        },
        "group_subtasks": {task: [] for task in tasks.values()},
        "configs": {
            task: {"task": task, "dataset_path": source, "output_type": "generate_until"}
            | {"repeats": run.benchmarks[source].responses[1], "num_fewshot": 0}
            for source, task in tasks.items()
        },
        "versions": dict.fromkeys(tasks.values(), 1),
        "n-shot": dict.fromkeys(tasks.values(), 0),
        "higher_is_better": {
            task: dict.fromkeys(_of_benchmark(run.benchmarks[source], "lm-eval"), True)
            for source, task in tasks.items()
        },
        "n-samples": {
            task: dict.fromkeys(("original", "effective"), run.benchmarks[source].prompts)
            for source, task in tasks.items()
        },
        "config": {"model": run.name, "model_args": ""},
        "task_hashes": hashes,
        "model_name": run.name,
        "model_name_sanitized": _name(run.name),
    }
    return [*written, _write_json(target / f"results_{date}.json", results)]


def _sample(number: int, source: str, prompt: Prompt, metrics: Mapping[str, float]) -> dict[str, Any]:
    asked, target = _text(prompt.asked), _text(prompt.truth)
    doc = {"question": asked, "answer": target, "data_source": _text(source)}
    responses = [_text(response) for response in prompt.responses]
    return {
        "doc_id": number,
        "doc": doc,
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": asked, "arg_1": {}}},
        "resps": [responses],
        "filtered_resps": [_answers(prompt, responses)],
        "filter": "none",
        "metrics": list(metrics),
        "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": _hash(asked),
        "target_hash": _hash(target),
        **metrics,
    }


def _write_lighteval(
    generations: Generations, run: EvaluatedRun, tasks: Mapping[str, str], folder: Path, date: str
) -> list[Path]:
    model = _name(run.name)
    details = folder / "details" / model / date
    written, results = [], {}
    for source, task in tasks.items():
        benchmark = run.benchmarks[source]
        name = f"{task}|0"
        rows = [
            {
                "doc": _doc(number, source, name, prompt),
                "metric": _of_prompt(benchmark, key, "lighteval"),
                "model_response": _model_response(prompt),
            }
            for number, (key, prompt) in enumerate(generations.prompts[source].items())
        ]
        metric = pa.struct([(one, pa.float64()) for one in rows[0]["metric"]])
        schema = pa.schema([("doc", _DOC), ("metric", metric), ("model_response", _MODEL_RESPONSE)])
        file = details / f"details_{name}_{date}.parquet"
        with replacing(file, EvaluationError) as stage:
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), stage())
        written.append(file)
        results[name] = {
            key: value
            for metric, (mean, error) in _of_benchmark(benchmark, "lighteval").items()
            for key, value in ((metric, mean), (f"{metric}_stderr", _or(error, 0.0)))
        }
    document = {
        "config_general": {"model_name": run.name, "model_config": {"model_name": run.name}},
        "results": results,
        "versions": {f"{task}|0": 1 for task in tasks.values()},
        "config_tasks": {f"{task}|0": {"name": task, "hf_repo": source} for source, task in tasks.items()},
        "summary_tasks": {},
        "summary_general": {},
    }
    return [*written, _write_json(folder / "results" / model / f"results_{date}.json", document)]


def _doc(number: int, source: str, task: str, prompt: Prompt) -> dict[str, Any]:
    truths = prompt.truth if isinstance(prompt.truth, list) else [prompt.truth]
    return {
        "query": _text(prompt.asked),
        "choices": [_text(truth) for truth in truths],
        "gold_index": list(range(len(truths))),
        "specific": {"data_source": _text(source)},
        "id": str(number),
        "task_name": task,
        "fewshot_samples": [],
        "sampling_methods": ["GENERATIVE"],
        "use_logits": False,
        "num_samples": len(prompt.responses),
    }


def _model_response(prompt: Prompt) -> dict[str, Any]:
    responses = [_text(response) for response in prompt.responses]
    return {
        "input": _text(prompt.asked),
        "text": responses,
        "text_post_processed": _answers(prompt, responses),
        **{name: [] for name in ("input_tokens", "output_tokens", "reasonings", "logprobs", "argmax_logits_eq_gold")},
        "truncated_tokens_count": 0,
        "padded_tokens_count": 0,
    }


def _answers(prompt: Prompt, responses: Sequence[str]) -> list[str]:
    """The graded answers; the whole responses where the run has none."""
    pairs = zip(prompt.answers, responses, strict=True)
    return [response if answer is None else _text(answer) for answer, response in pairs]


def _metric_names(benchmark: Benchmark, form: Format) -> dict[str, str]:
    """Metric -> what the format calls it."""
    fewest, k = benchmark.responses[0], benchmark.k
    if form == "lm-eval":
        names = {"avg": "exact_match", "pass": f"pass@{k}", "maj": f"maj@{k}"}
    else:
        names = {"avg": f"avg@n:n={fewest}", "pass": f"pass@k:k={k}&n={fewest}", "maj": f"maj@n:n={k}"}
    return {metric: name for metric, name in names.items() if metric in benchmark.values}


def _of_prompt(benchmark: Benchmark, key: str, form: Format) -> dict[str, float]:
    return {name: benchmark.values[metric][key] for metric, name in _metric_names(benchmark, form).items()}


def _of_benchmark(benchmark: Benchmark, form: Format) -> dict[str, tuple[float, float | None]]:
    """Mean over prompts and its standard error, None for a single prompt."""
    found: dict[str, tuple[float, float | None]] = {}
    for metric, name in _metric_names(benchmark, form).items():
        value_P = np.array(list(benchmark.values[metric].values()))
        error = float(value_P.std(ddof=1)) / math.sqrt(len(value_P)) if len(value_P) > 1 else None
        found[name] = (float(value_P.mean()), error)
    return found


def _or(value: float | None, other: Any) -> Any:
    return other if value is None else value


def _name(text: str) -> str:
    """A name that both formats take in the names of files."""
    return _NOT_IN_NAMES.sub("_", text) or "_"


def _text(value: Any) -> str:
    """A value as text that UTF-8 holds."""
    return ("" if value is None else str(value)).encode("utf-8", "replace").decode("utf-8")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _write_json(file: Path, content: Mapping[str, Any]) -> Path:
    with replacing(file, EvaluationError) as stage:
        stage().write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8", errors="replace")
    return file

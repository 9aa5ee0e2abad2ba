"""Exports in the forms of lm-evaluation-harness and lighteval: names, columns and figures as those packages have them.

The names were taken from lm-eval 0.4.13 (``evaluator.py``, ``loggers/evaluation_tracker.py``) and lighteval 0.13.0
(``tasks/requests.py``, ``models/model_output.py``, ``logging/evaluation_tracker.py``).
"""

import hashlib
import json
import math
import re
from datetime import datetime

import datasets
import pytest

from spo_verl.evaluation.exports import export
from spo_verl.evaluation.generations import EvaluationError, read_generations
from spo_verl.evaluation.scores import EvaluationSettings, evaluate
from tests.cli.helpers import run
from tests.data.prepare.releases import write_jsonl
from tests.evaluation.files import answers, question, write_lines

NOW = datetime(2026, 1, 2, 3, 4, 5)
DATE = "2026-01-02T03-04-05"
ROWS = [["1", "2", "1", ""], ["7", "7", "1", "8"]]
SAMPLE = (
    "doc_id doc target arguments resps filtered_resps filter metrics doc_hash prompt_hash target_hash"
    " exact_match pass@4 maj@4"
)
DOC = (
    "query choices gold_index instruction images specific unconditioned_query original_query id task_name"
    " fewshot_samples sampling_methods fewshot_sorting_class generation_size stop_sequences use_logits num_samples"
    " generation_grammar"
)
MODEL_RESPONSE = (
    "input input_tokens text output_tokens text_post_processed reasonings logprobs argmax_logits_eq_gold logits"
    " unconditioned_logprobs truncated_tokens_count padded_tokens_count"
)


@pytest.fixture
def exported(tmp_path):
    """Export lines; returns the folder."""

    def run_export(form, lines, file="7.jsonl", name="org/model"):
        path = tmp_path / file
        read = [read_generations(write_jsonl(path, lines), name, keep_texts=True)]
        found = evaluate(read, EvaluationSettings(resamples=100))
        folder = tmp_path / "out" / form
        written = export(form, read, found, folder, NOW)
        assert sorted(written) == sorted(one for one in folder.rglob("*") if one.is_file())
        return folder

    return run_export


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_samples_and_results_of_lm_eval(exported):
    folder = exported("lm-eval", answers("openai/gsm8k", ROWS)) / "org_model"
    assert {one.name for one in folder.iterdir()} == {
        f"samples_openai_gsm8k_{DATE}.jsonl",
        f"results_{DATE}.json",
    }
    rows = [json.loads(line) for line in (folder / f"samples_openai_gsm8k_{DATE}.jsonl").read_text().splitlines()]
    assert [list(row) for row in rows] == [SAMPLE.split()] * 2
    first = rows[0]
    asked = question("openai/gsm8k", 0)
    assert first["doc"] == {"question": asked, "answer": "1", "data_source": "openai/gsm8k"}
    assert first["arguments"] == {"gen_args_0": {"arg_0": asked, "arg_1": {}}}
    # One request, of which the four responses are repeats.
    assert first["resps"] == [["so \\boxed{1}", "so \\boxed{2}", "so \\boxed{1}", "I give up"]]
    assert first["filtered_resps"] == [["1", "2", "1", ""]]
    assert (first["doc_id"], first["target"], first["filter"]) == (0, "1", "none")
    assert first["metrics"] == ["exact_match", "pass@4", "maj@4"]
    assert [(row["exact_match"], row["pass@4"], row["maj@4"]) for row in rows] == [(0.5, 1.0, 1.0), (0.25, 1.0, 0.0)]
    assert first["doc_hash"] == sha(json.dumps(first["doc"], indent=2, ensure_ascii=False))
    assert (first["prompt_hash"], first["target_hash"]) == (sha(asked), sha("1"))

    results = json.loads((folder / f"results_{DATE}.json").read_text())
    task = "openai_gsm8k"
    of_task = results["results"][task]
    assert (of_task["alias"], of_task["sample_len"], of_task["exact_match,none"]) == (task, 2, 0.375)
    assert of_task["exact_match_stderr,none"] == pytest.approx(0.125)  # sd of (0.5, 0.25) over sqrt(2)
    assert (of_task["pass@4,none"], of_task["maj@4,none"]) == (1.0, 0.5)
    assert results["n-samples"] == {task: {"original": 2, "effective": 2}}
    assert results["configs"][task]["repeats"] == 4
    assert results["higher_is_better"] == {task: dict.fromkeys(first["metrics"], True)}
    parts = (row[name] for row in rows for name in ("doc_hash", "prompt_hash", "target_hash"))
    assert results["task_hashes"] == {task: sha("".join(parts))}
    # lm-eval finds a task and a date in a file's name by its first and its last underscore.
    name = f"samples_{task}_{DATE}.jsonl"
    assert (name[name.find("_") + 1 : name.rfind("_")], name[name.rfind("_") + 1 :]) == (task, f"{DATE}.jsonl")
    loaded = datasets.load_dataset("json", data_files=str(folder / name), split="train")
    assert loaded["resps"][1] == [["so \\boxed{7}", "so \\boxed{7}", "so \\boxed{1}", "so \\boxed{8}"]]


def test_details_and_results_of_lighteval(exported):
    folder = exported("lighteval", answers("aime_2024", ROWS))
    details = folder / "details" / "org_model" / DATE / f"details_aime_2024|0_{DATE}.parquet"
    # The name of the task, as lighteval's reader finds it.
    assert details.stem.replace("details_", "").replace(f"_{DATE}", "") == "aime_2024|0"
    assert re.search(r"details_(?P<task>.*?)_(?P<date>\d+-\d+-\d+T.*)\.parquet$", details.name)
    rows = datasets.load_dataset("parquet", data_files=str(details), split="train")
    assert rows.column_names == ["doc", "metric", "model_response"]
    first = rows[0]
    assert list(first["doc"]) == DOC.split()
    assert list(first["model_response"]) == MODEL_RESPONSE.split()
    doc = first["doc"]
    assert (doc["query"], doc["choices"], doc["gold_index"]) == (question("aime_2024", 0), ["1"], [0])
    assert (doc["id"], doc["task_name"], doc["num_samples"]) == ("0", "aime_2024|0", 4)
    assert doc["specific"] == {"data_source": "aime_2024"}
    response = first["model_response"]
    assert response["text"] == ["so \\boxed{1}", "so \\boxed{2}", "so \\boxed{1}", "I give up"]
    assert response["text_post_processed"] == ["1", "2", "1", ""]
    assert response["input"] == doc["query"]
    assert first["metric"] == {"avg@n:n=4": 0.5, "pass@k:k=4&n=4": 1.0, "maj@n:n=4": 1.0}
    results = json.loads((folder / "results" / "org_model" / f"results_{DATE}.json").read_text())
    assert results["results"]["aime_2024|0"]["avg@n:n=4"] == 0.375
    assert results["results"]["aime_2024|0"]["avg@n:n=4_stderr"] == pytest.approx(0.125)
    assert results["config_general"]["model_name"] == "org/model"
    assert {"versions", "config_tasks", "summary_tasks", "summary_general"} <= results.keys()


@pytest.mark.parametrize("form", ["lm-eval", "lighteval"])
def test_plain_files_several_truths_and_texts_that_utf8_has_not(form, exported):
    lines = [
        {"prompt_id": n, "prompt": "Wh\u00e4t?", "response": "half \ud800", "data_source": "mine", "acc": 1.0}
        | {"ground_truth": ["1", "2"]}
        for n in (1, 1, 2)
    ]
    folder = exported(form, lines, file="plain.jsonl")
    if form == "lm-eval":
        [file] = folder.rglob("samples_*")
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert [row["resps"] for row in rows] == [[["half ?", "half ?"]], [["half ?"]]]
        assert rows[0]["filtered_resps"] == rows[0]["resps"]  # the file says no answers
        assert rows[0]["metrics"] == ["exact_match", "pass@1"]
        assert (rows[0]["target"], rows[0]["doc"]["question"]) == ("['1', '2']", "Wh\u00e4t?")
    else:
        [file] = folder.rglob("details_*")
        rows = datasets.load_dataset("parquet", data_files=str(file), split="train")
        assert (rows[0]["doc"]["choices"], rows[0]["doc"]["gold_index"]) == (["1", "2"], [0, 1])
        assert rows[1]["model_response"]["text"] == ["half ?"]


def test_a_single_prompt_has_no_standard_error(exported):
    lines = answers("mine", [["1", "2"]])
    found = json.loads(next(exported("lm-eval", lines).rglob("results_*")).read_text())["results"]["mine"]
    assert (found["exact_match,none"], found["exact_match_stderr,none"]) == (0.5, "N/A")
    found = json.loads(next(exported("lighteval", lines).rglob("results_*")).read_text())["results"]["mine|0"]
    assert math.isclose(found["avg@n:n=2_stderr"], 0.0)


def test_benchmarks_whose_files_would_have_one_name_are_refused(exported):
    with pytest.raises(EvaluationError, match="differ in signs only: a b, a_b"):
        exported("lm-eval", answers("a b", ROWS) + answers("a_b", ROWS))


def test_the_options_of_the_verb(tmp_path):
    file = write_lines(tmp_path / "7.jsonl", answers("mine", ROWS))
    (tmp_path / "taken").write_text("")
    refused = run("evaluate", file, "--resamples", 100, "--lighteval", tmp_path / "taken")
    assert (refused.exit_code, "is a file: name a folder" in refused.stderr) == (2, True)
    refused = run("evaluate", file, "--resamples", 100, "--lm-eval", tmp_path / ("x" * 300))
    assert (refused.exit_code, "cannot be written (File name too long)" in refused.stderr) == (2, True)
    done = run(
        "evaluate", f"spo={file}", "--resamples", 100, "--lighteval", tmp_path / "a", "--lm-eval", tmp_path / "b"
    )
    assert done.exit_code == 0, done.output
    assert f"lm-eval: {tmp_path / 'b'}" in done.output
    assert len(list((tmp_path / "a").rglob("details_mine|0_*.parquet"))) == 1
    assert len(list((tmp_path / "b" / "spo").glob("samples_mine_*.jsonl"))) == 1

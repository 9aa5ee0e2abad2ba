"""Reading verl's dumps and plain files; what is refused, and with which words."""

import inspect
import json
import random
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spo_verl.data.data_files import DataFiles
from spo_verl.evaluation.generations import DataSources, EvaluationError, files_of, read_generations
from tests.cli.helpers import row, write_rows
from tests.evaluation.files import answers, dump_line, write_lines


def test_a_dump_is_what_verls_trainer_writes(tmp_path):
    """Its own writer, with the extra infos of our reward."""
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    writer = inspect.getattr_static(PPOTrainer, "_write_generations").__func__
    extra = {"reward": [1.0, 0.0], "acc": [1.0, 0.0], "pred": ["1", ""], "data_source": ["aime_2024"] * 2}
    extra["uid"] = ["ab_0_0", "ab_1_0"]
    writer(["q", "q"], ["\\boxed{1}", "no"], ["1", "1"], [1.0, 0.0], extra, str(tmp_path), 12)
    found = read_generations(tmp_path, "run")
    [prompt] = found.prompts["aime_2024"].values()
    assert (prompt.correct, prompt.answers, found.step) == ([1.0, 0.0], ["1", ""], 12)


def test_of_a_session_with_several_outputs_the_last_counts_once(tmp_path):
    line = dump_line("aime_2024", 0, 0, "1", "1")
    uid = line["uid"].removesuffix("_0_0")
    lines = [line | {"uid": f"{uid}_0_0", "output": "call"}, line | {"uid": f"{uid}_0_1"}, line | {"uid": f"{uid}_1_0"}]
    seen = []

    def regrade(source, response, truth):
        seen.append(response)
        return {"acc": 1.0, "pred": "1"}

    found = read_generations(write_lines(tmp_path / "0.jsonl", lines), "run", regrade=regrade)
    assert seen == ["so \\boxed{1}"] * 2
    assert [len(one.correct) for one in found.prompts["aime_2024"].values()] == [2]
    twice = read_generations(write_lines(tmp_path / "twice.jsonl", [*lines, *lines]), "run")
    assert [len(one.correct) for one in twice.prompts["aime_2024"].values()] == [2]
    assert twice.problems == ["3 lines repeat a session and were left out: is a file there twice?"]


def test_the_last_step_of_a_folder_or_the_one_that_is_asked_for(tmp_path):
    for step in (0, 9, 10):
        write_lines(tmp_path / f"{step}.jsonl", answers("aime_2024", [["1"] * (step + 1)]))
    assert read_generations(tmp_path, "run").step == 10
    assert files_of(tmp_path, 9) == ([tmp_path / "9.jsonl"], 9)
    with pytest.raises(EvaluationError, match="no dump of step 5; there are steps 0, 9, 10"):
        files_of(tmp_path, 5)


def plain(prompt_id, response, **more):
    return {"prompt_id": prompt_id, "response": response, "data_source": "gsm8k", **more}


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_plain_files(tmp_path, ending):
    rows = [plain(number, "r", score=float(number % 2), pred=str(number)) for number in (0, 1, 0, 1)]
    file = tmp_path / f"generations.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        write_lines(file, rows)
    found = read_generations(tmp_path, "run")
    assert [(one.correct, one.answers) for one in found.prompts["gsm8k"].values()] == [
        ([0.0, 0.0], ["0", "0"]),
        ([1.0, 1.0], ["1", "1"]),
    ]
    assert found.step is None


def test_acc_comes_before_score_and_a_field_can_be_named(tmp_path):
    lines = answers("aime_2024", [["1", "2"]], score=-1.0, mine=0.25)
    file = write_lines(tmp_path / "0.jsonl", lines)
    [prompt] = read_generations(file, "run").prompts["aime_2024"].values()
    assert prompt.correct == [1.0, 0.0]
    [prompt] = read_generations(file, "run", grade_key="mine").prompts["aime_2024"].values()
    assert prompt.correct == [0.25, 0.25]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"prompt_id": 1}, "line 1: neither a line of verl's"),
        ({"input": "question"}, "line 1: neither a line of verl's"),
        (plain(1, "r"), "line 1: no acc or score in \\[0, 1\\].*--regrade"),
        (plain(1, "r", score=-1.0), "--grade-key"),
        ({"prompt_id": 1, "response": "r", "score": 1.0}, "no data_source; give --source NAME"),
    ],
)
def test_incomplete_lines_are_refused(tmp_path, line, words):
    with pytest.raises(EvaluationError, match=words):
        read_generations(write_lines(tmp_path / "generations.jsonl", [line]), "run")


def test_files_that_are_not_there_or_not_readable(tmp_path):
    with pytest.raises(EvaluationError, match="no such file, or a folder without"):
        read_generations(tmp_path / "nowhere", "run")
    (tmp_path / "0.jsonl").write_text('{"input": "a"')
    with pytest.raises(EvaluationError, match="0.jsonl, line 1: not readable JSON"):
        read_generations(tmp_path, "run")
    (tmp_path / "0.jsonl").write_text("")
    with pytest.raises(EvaluationError, match="no generation in it"):
        read_generations(tmp_path, "run")
    (tmp_path / "x.parquet").write_text("nothing")
    with pytest.raises(EvaluationError, match="cannot be read as Parquet"):
        read_generations(tmp_path / "x.parquet", "run")


def test_the_data_tell_benchmarks_and_how_many_prompts_there_are(tmp_path):
    rows = [{**row(f"What is {n}?", str(n)), "data_source": "aime_2024" if n < 2 else "mine"} for n in range(5)]
    data = DataSources(DataFiles([write_rows(tmp_path / "test.parquet", rows)]))
    assert data.expected == {"aime_2024": 2, "mine": 3}
    lines = [
        {"input": f"user What is {n}? assistant", "output": "o", "gts": str(n), "score": 1.0, "step": 0}
        for n in range(4)
    ]
    found = read_generations(write_lines(tmp_path / "0.jsonl", lines), "run", data=data)
    assert {source: len(prompts) for source, prompts in found.prompts.items()} == {"aime_2024": 2, "mine": 2}
    assert found.expected == data.expected


def test_the_same_prompt_has_the_same_key_in_another_run(tmp_path):
    first = read_generations(write_lines(tmp_path / "a.jsonl", answers("mine", [["1"], ["2"]])), "a")
    lines = [{**line, "uid": f"x{n}_0_0", "output": "?"} for n, line in enumerate(answers("mine", [["2"], ["1"]]))]
    second = read_generations(write_lines(tmp_path / "b.jsonl", lines), "b")
    assert first.prompts["mine"].keys() == second.prompts["mine"].keys()


def test_grading_again_replaces_grades_and_answers_and_counts_changes(tmp_path):
    rows = [plain(1, "\\boxed{2}", ground_truth="2", score=0.0), plain(1, "none", ground_truth="2", pred="2")]

    def regrade(source, response, truth):
        assert (source, truth) == ("gsm8k", "2")
        right = response == "\\boxed{2}"
        return {"acc": float(right), "pred": "2" if right else "", "grading_timeout": float(not right)}

    found = read_generations(write_lines(tmp_path / "g.jsonl", rows), "run", regrade=regrade)
    [prompt] = found.prompts["gsm8k"].values()
    assert (prompt.correct, prompt.answers) == ([1.0, 0.0], ["2", ""])
    assert found.regraded == (2, 1, 1)
    assert json.dumps(found.regraded)


VERLS = {
    "uid": [
        lambda n: f"aime_2024_{n}",
        lambda n: f"{uuid.UUID(int=7)}_0_{n}",
        lambda n: "a_0_0",
        lambda n: n,
        lambda n: None,
    ],
    "step": [lambda n: 3, lambda n: n, lambda n: f"step {n}", lambda n: [n], lambda n: None],
    "input": [lambda n: "the same", lambda n: {"n": n}, lambda n: None],
    "output": [lambda n: "the same", lambda n: n],
    "gts": [lambda n: "1", lambda n: ["1"], lambda n: None],
    "score": [lambda n: n / 8, lambda n: float("nan"), lambda n: "good", lambda n: 10**400],
    "ground_truth": [lambda n: n],
    "session_id": [lambda n: 0],
}
"""Columns of the names that verl uses, as others fill them."""


@pytest.mark.parametrize("seed", range(40))
def test_a_plain_file_counts_every_row_whatever_further_columns_it_has(tmp_path, seed):
    rng = random.Random(seed)
    chosen = rng.sample(sorted(VERLS), rng.randint(1, len(VERLS)))
    fill = {name: rng.choice(VERLS[name]) for name in chosen}
    if set(chosen) >= {"uid", "step", "input", "output", "gts", "score"}:
        fill.pop("gts")  # all of verl's columns together are a dump
    rows = [plain(n // 2, "r", acc=float(n % 2), pred="1") for n in range(8)]
    without = read_generations(write_lines(tmp_path / "without.jsonl", rows), "run")
    more = [row | {name: made(n) for name, made in fill.items()} for n, row in enumerate(rows)]
    name = rng.choice(["with.jsonl", "2024.jsonl"])
    found = read_generations(write_lines(tmp_path / name, more), "run")
    assert found.prompts == without.prompts
    assert (found.rows, found.used, found.set_aside, found.step) == (8, 8, {}, None)


def test_plain_files_with_numbers_for_names_are_no_steps(tmp_path):
    for year in (2024, 2025):
        write_lines(tmp_path / f"{year}.jsonl", [plain(year, "r", acc=1.0)])
    found = read_generations(tmp_path, "run")
    assert (found.rows, len(found.prompts["gsm8k"]), found.step) == (2, 2, None)


def test_dumps_of_several_steps_beside_other_files_are_not_added_up(tmp_path):
    for name in ("0", "10", "notes"):
        write_lines(tmp_path / f"{name}.jsonl", answers("aime_2024", [["1"]]))
    with pytest.raises(EvaluationError, match="several training steps"):
        read_generations(tmp_path, "run")


def test_lines_of_several_steps_in_one_file_are_a_problem(tmp_path):
    lines = [*answers("aime_2024", [["1"]], step=0), *answers("aime_2024", [["2"]], step=10)]
    lines[1]["uid"] = lines[1]["uid"].replace("_0_0", "_1_0")
    found = read_generations(write_lines(tmp_path / "all.jsonl", lines), "run")
    assert found.problems == ["lines of several training steps are mixed (0, 10): the figures are of no one policy"]


@pytest.mark.parametrize("seed", range(20))
def test_rows_read_are_rows_used_and_rows_set_aside(tmp_path, seed):
    """Sessions with several outputs, repeated ones, and rows without a session of verl's, in any number."""
    rng = random.Random(seed)
    lines, sessions, bare = [], [], 0
    for session in range(rng.randint(1, 6)):
        outputs = rng.randint(1, 4)
        lines += [dump_line("mine", 0, session, "1", "1", output=str(index)) for index in range(outputs)]
        for index, line in enumerate(lines[-outputs:]):
            line["uid"] = line["uid"].removesuffix("_0") + f"_{index}"
        sessions.append(outputs)
    again = rng.choice([[], lines[: rng.randint(1, len(lines))]])
    for _ in range(rng.randint(0, 3)):
        lines.append({**dump_line("mine", 0, 0, "1", "1"), "uid": rng.choice(["aime_2024_1", "", "x"])})
        bare += 1
    found = read_generations(write_lines(tmp_path / "0.jsonl", [*lines, *again]), "run")
    assert found.rows == len(lines) + len(again)
    assert found.used == len(sessions) + bare
    assert found.rows == found.used + sum(found.set_aside.values())
    [prompt] = found.prompts["mine"].values()
    assert len(prompt.correct) == found.used
    assert bool(again) == any("repeat a session" in problem for problem in found.problems)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"prompt_id": None}, "prompt_id is None"),
        ({"prompt_id": float("nan")}, "prompt_id is nan"),
        ({"prompt_id": ["a"]}, "prompt_id is \\['a'\\]"),
        ({"data_source": {"name": "x"}}, "data_source is"),
        ({"acc": "1"}, "acc is '1', and a grade is a number"),
        ({"acc": 10**400}, "no acc or score in"),
        ({"acc": float("nan")}, "no acc or score in"),
    ],
)
def test_rows_are_not_put_together_or_graded_by_what_they_do_not_say(tmp_path, more, words):
    rows = [plain(1, "r", acc=1.0), plain(1, "r", acc=1.0) | more]
    with pytest.raises(EvaluationError, match=f"line 2: {words}"):
        read_generations(write_lines(tmp_path / "g.jsonl", rows), "run")

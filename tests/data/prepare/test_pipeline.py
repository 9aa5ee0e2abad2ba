"""What is counted, dropped, refused and written; that all of it or nothing is written; that verl takes the file."""

import json
import os
import subprocess
import sys

import datasets
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

import spo_verl
from spo_verl.data import dataset_keys, prompt_key
from spo_verl.data.prepare import (
    TEMPLATES,
    RowError,
    SpoDataError,
    check_file,
    prepare,
    stored_report,
    streams,
    writing,
)
from tests.data.prepare.releases import MATH_ARENA, ORIGINAL, PROCESSED, original, processed, write_jsonl, write_parquet
from tests.support import gsm8k

DUPLICATE, NOT_ENGLISH, CONFLICT, INVALID = "duplicate", "not_english", "conflict", "invalid"


def pairs(file):
    return [
        (row["extra_info"]["problem"], row["reward_model"]["ground_truth"]) for row in pq.read_table(file).to_pylist()
    ]


@pytest.fixture
def dapo(tmp_path):
    """Prepare rows of the original; returns the report and the written pairs."""

    def run(rows, **options):
        file = write_parquet(tmp_path / "original.parquet", rows, ORIGINAL)
        out = tmp_path / "out.parquet"
        report = prepare("dapo_math_17k", out, origin=[str(file)], force=True, **options)
        assert report.read == report.written + sum(report.dropped.values())
        assert stored_report(out)["written"] == report.written == len(pairs(out))
        return report, pairs(out)

    return run


def test_repeats_are_dropped_and_counted(dapo):
    # The same problem under other indices, with other white space, with leading zeros, and without its instruction.
    bare = original("One?", "1", 5) | {"prompt": [{"content": "One?", "role": "user"}]}
    rows = [original("One?", "1", n) for n in range(3)] + [original(" One? ", "01", 4), bare, original("Two?", "2", 6)]
    report, written = dapo(rows)
    assert written == [("One?", "1"), ("Two?", "2")]
    assert report.dropped == {DUPLICATE: 4}
    assert report.instructions_removed == 5


def test_a_hundred_repeats_in_several_batches_and_row_groups(dapo, monkeypatch):
    monkeypatch.setattr(streams, "_ROWS_PER_BATCH", 7)
    monkeypatch.setattr(writing, "ROWS_PER_GROUP", 4)
    rows = [original(f"What is {n % 10}?", str(n % 10), n) for n in range(1000)]
    report, written = dapo(rows)
    assert written == [(f"What is {n}?", str(n)) for n in range(10)]
    assert (report.read, report.dropped) == (1000, {DUPLICATE: 990})


def test_the_file_is_written_in_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "ROWS_PER_GROUP", 4)
    rows = [{"problem_idx": n, "problem": f"{n}?", "answer": "1"} for n in range(10)]
    out = tmp_path / "out.parquet"
    prepare("brumo_2025", out, origin=[str(write_parquet(tmp_path / "in.parquet", rows, MATH_ARENA))])
    metadata = pq.read_metadata(out)
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [4, 4, 2]


def test_chinese_rows_and_their_repeats_are_counted_as_such(dapo):
    report, written = dapo([original("求 $x$", "1"), original("Find $x$", "1"), original("求 $x$", "1")])
    assert written == [("Find $x$", "1")]
    assert report.dropped == {NOT_ENGLISH: 2}


def test_chinese_rows_of_other_sources_stay(tmp_path):
    out = tmp_path / "out.parquet"
    file = write_jsonl(tmp_path / "in.jsonl", [{"problem": "求 $x$", "answer": "1"}])
    assert prepare("hmmt_feb_2025", out, origin=[str(file)]).written == 1


CONFLICTING = [
    original("Same?", "1"),
    original("Other?", "5"),
    original("Same?", "2"),
    original("Same ?", "9"),  # another problem
    original("Same?", "1"),
    original(" Same?", "2"),
    original("Same?", "3"),
]


@pytest.mark.parametrize(
    ("rule", "expected", "dropped"),
    [
        # Row 0 and the first of each other answer are conflicts, the others repeat an answer.
        ("drop", [("Other?", "5"), ("Same ?", "9")], {CONFLICT: 3, DUPLICATE: 2}),
        ("first", [("Same?", "1"), ("Other?", "5"), ("Same ?", "9")], {CONFLICT: 2, DUPLICATE: 2}),
        ("keep", [("Same?", "1"), ("Other?", "5"), ("Same?", "2"), ("Same ?", "9"), ("Same?", "3")], {DUPLICATE: 2}),
    ],
)
def test_a_problem_with_several_answers(dapo, rule, expected, dropped):
    report, written = dapo(CONFLICTING, conflicts=rule)
    assert written == expected
    assert report.dropped == dropped
    assert report.conflicting_problems == 1
    assert report.conflicts == [{"problem": "Same?", "answers": ["1", "2", "3"]}]
    assert any("1 | 2 | 3: Same?" in line for line in report.lines())


def test_answers_that_are_no_numbers_are_counted_as_far_as_they_are_written(dapo):
    rows = [original("A?", "x+1"), original("B?", "2"), original("C?", "y"), original("C?", "z")]
    assert dapo(rows)[0].answers_not_whole == 1
    assert dapo(rows, conflicts="keep")[0].answers_not_whole == 3


def test_the_processed_release_may_still_hold_instructions(tmp_path):
    wrapped = processed("Two?", "2", 1) | {"prompt": original("Two?", "2")["prompt"][0]["content"]}
    file = write_parquet(tmp_path / "in.parquet", [processed("One?", "1"), wrapped], PROCESSED)
    report = prepare("dapo_math_17k", tmp_path / "out.parquet", origin=[str(file)])
    assert pairs(tmp_path / "out.parquet") == [("One?", "1"), ("Two?", "2")]
    assert report.instructions_removed == 1


MESSAGES = [{"content": "x", "role": "user"}]
INVALID_ROWS = [
    ({"reward_model": None}, "field reward_model.ground_truth: it is empty"),
    ({"reward_model": {"ground_truth": " ", "style": "rule"}}, "field reward_model.ground_truth: it is empty"),
    ({"prompt": None}, "field prompt: it is empty"),
    ({"prompt": []}, "field prompt: it is empty"),
    ({"prompt": MESSAGES * 2}, "and the source has one message per row"),
    ({"prompt": [{"content": "x", "role": "system"}]}, r"field prompt\[0\].role: 'system' instead of 'user'"),
    ({"prompt": [{"content": "", "role": "user"}]}, "field prompt: it is empty, and a problem is a text"),
    ({"prompt": [{"content": None, "role": "user"}]}, "field prompt: it is empty"),
    (original(" ", "1"), "field prompt: there is an instruction and no problem"),
]


@pytest.mark.parametrize(("change", "complaint"), INVALID_ROWS)
def test_an_invalid_row_is_named_and_nothing_is_written(dapo, tmp_path, change, complaint):
    rows = [original(f"{n}?", "1", n) for n in range(3)] + [original("x", "1") | change]
    with pytest.raises(RowError, match=rf"original\.parquet: row 3, .*{complaint}.*--drop-invalid"):
        dapo(rows)
    assert not (tmp_path / "out.parquet").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["original.parquet"]
    report, written = dapo(rows, drop_invalid=True)
    assert len(written) == 3
    assert report.dropped == {INVALID: 1}
    assert report.invalid[0].startswith("row 3, field ")


def test_answers_that_break_the_sources_rule_are_named(tmp_path):
    file = write_jsonl(tmp_path / "in.jsonl", [{"problem": "1?", "answer": "1"}, {"problem": "2?", "answer": "1/2"}])
    with pytest.raises(RowError, match=r"row 1, field answer: '1/2' is not a whole number"):
        prepare("aime_2025", tmp_path / "out.parquet", origin=[str(file)])


def test_a_column_of_texts_and_numbers_is_read(tmp_path):
    # `datasets` keeps such a column as JSON.
    file = write_jsonl(tmp_path / "in.jsonl", [{"question": "1?", "answer": 70}, {"question": "2?", "answer": "016"}])
    prepare("aime_2025", tmp_path / "out.parquet", origin=[str(file)])
    assert pairs(tmp_path / "out.parquet") == [("1?", "70"), ("2?", "16")]


def test_a_member_of_texts_and_numbers_is_read(tmp_path):
    truths = (70, "016", "-2", "x + 1")
    rows = [original(f"{truth}?", "") | {"reward_model": {"ground_truth": truth, "style": "rule"}} for truth in truths]
    file = write_jsonl(tmp_path / "in.jsonl", rows)
    prepare("dapo_math_17k", tmp_path / "out.parquet", origin=[str(file)])
    assert [answer for _, answer in pairs(tmp_path / "out.parquet")] == ["70", "16", "-2", "x + 1"]


def test_nothing_left_is_an_error(dapo, tmp_path):
    with pytest.raises(
        SpoDataError, match=r"no row of .*original\.parquet is left \(1 not in English\): nothing was written"
    ):
        dapo([original("求 $x$", "1")])
    assert not (tmp_path / "out.parquet").exists()


def test_a_limit_is_of_rows_read(dapo):
    report, written = dapo([original(f"{n // 2}?", "1") for n in range(20)], limit=5)
    assert (report.read, len(written), report.details["limit"]) == (5, 3, 5)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("there.parquet", "is there already: choose another name, or replace it with --force"), ("folder", "is a folder")],
)
def test_what_is_there_is_not_overwritten(tmp_path, name, complaint):
    (tmp_path / "folder").mkdir()
    (tmp_path / "there.parquet").write_text("precious")
    file = write_jsonl(tmp_path / "in.jsonl", [{"problem": "1?", "answer": "1"}])
    with pytest.raises(SpoDataError, match=complaint):
        prepare("brumo_2025", tmp_path / name, origin=[str(file)])
    assert (tmp_path / "there.parquet").read_text() == "precious"


def test_only_parquet_is_written(tmp_path):
    with pytest.raises(SpoDataError, match=r"let the name end with \.parquet"):
        prepare("brumo_2025", tmp_path / "x.jsonl")


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path):
    out = tmp_path / "out.parquet"
    good, bad = [{"problem": "1?", "answer": "1"}], [{"problem": "1?", "answer": "1"}, {"problem": None, "answer": "1"}]
    prepare("brumo_2025", out, origin=[str(write_jsonl(tmp_path / "good.jsonl", good))])
    before = out.read_bytes()
    with pytest.raises(RowError):
        prepare("brumo_2025", out, origin=[str(write_jsonl(tmp_path / "bad.jsonl", bad))], force=True)
    assert out.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"out.parquet", "good.jsonl", "bad.jsonl"}


def test_the_report_is_in_the_file(dapo, tmp_path):
    report, _ = dapo(CONFLICTING, template="tool")
    stored = stored_report(tmp_path / "out.parquet")
    assert {key: stored[key] for key in report.as_json()} == report.as_json()
    assert (stored["format_version"], stored["spo_verl_version"]) == (1, spo_verl.__version__)
    assert stored["template"] == "tool"
    assert stored_report(write_parquet(tmp_path / "other.parquet", [], MATH_ARENA)) is None


def test_progress_is_told_with_the_number_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "_ROWS_PER_BATCH", 4)
    rows = [{"problem_idx": n, "problem": f"{n}?", "answer": "1"} for n in range(10)]
    file = write_parquet(tmp_path / "in.parquet", rows, MATH_ARENA)
    told = []

    def begin(total):
        told.append(total)
        return lambda read, kept: told.append((read, kept))

    prepare("brumo_2025", tmp_path / "out.parquet", origin=[str(file)], progress=begin)
    assert told == [10, (4, 4), (8, 8), (10, 10), (10, 10)]


def test_errors_pass_through_pickle():
    import pickle

    error = pickle.loads(pickle.dumps(RowError("row 1, field a: b")))
    assert (type(error), str(error)) == (RowError, "row 1, field a: b")
    assert isinstance(error, ValueError)


def test_without_a_network_there_is_one_clear_error(tmp_path):
    code = (
        "import sys; from spo_verl.cli import main\n"
        f"sys.argv = ['spo-verl', 'data', 'prepare', 'hmmt_feb_2025', '-o', {str(tmp_path / 'out.parquet')!r}]\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("error: MathArena/hmmt_feb_2025 on the hub (default, train) cannot be read (")
    assert "give it with --from" in line
    assert not (tmp_path / "out.parquet").exists()


class TestWithVerl:
    """The prepared file through verl's own dataset class and through the identity of prompts."""

    @pytest.fixture
    def load(self, tmp_path, monkeypatch):
        from verl.utils.dataset.rl_dataset import RLHFDataset

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        config = OmegaConf.create({"cache_dir": str(tmp_path / "verl"), "filter_overlong_prompts": False})
        return lambda *files: RLHFDataset([str(file) for file in files], None, config)

    def test_rows_are_prompts(self, tmp_path, load):
        rows = [original(f"What is {n}?", str(n), n) for n in range(5)]
        file = write_parquet(tmp_path / "in.parquet", rows, ORIGINAL)
        prepare("dapo_math_17k", tmp_path / "out.parquet", origin=[str(file)])
        dataset = load(tmp_path / "out.parquet")
        assert dataset[3]["raw_prompt"] == TEMPLATES["boxed"].messages("What is 3?")
        assert dataset[3]["index"] == 3
        assert dataset[3]["reward_model"]["ground_truth"] == "3"
        keys = dataset_keys(dataset)
        assert (keys.rows, keys.prompts) == (5, 5)
        expected = {
            "data_source": "dapo_math_17k",
            "prompt": TEMPLATES["boxed"].messages("What is 3?"),
            "reward_model": {"style": "rule", "ground_truth": "3"},
        }
        assert keys.key_P[3].tobytes() == prompt_key(expected)

    def test_the_template_is_part_of_the_identity_and_the_origin_is_not(self, tmp_path, load):
        first = write_parquet(tmp_path / "a.parquet", [original("One?", "1", 1)], ORIGINAL)
        second = write_parquet(tmp_path / "b.parquet", [processed("Two?", "2"), processed("One?", "01")], PROCESSED)
        keys = {}
        for name, file, template in (("a", first, "boxed"), ("b", second, "boxed"), ("c", first, "tool")):
            out = tmp_path / f"out-{name}.parquet"
            prepare("dapo_math_17k", out, origin=[str(file)], template=template)
            keys[name] = {bytes(key) for key in dataset_keys(load(out)).key_P}
        assert keys["a"] < keys["b"]
        assert not keys["a"] & keys["c"]

    def test_training_and_evaluation_files_stand_in_one_dataset(self, tmp_path, load):
        train = write_parquet(tmp_path / "a.parquet", [original("One?", "1", 1)], ORIGINAL)
        held_out = write_jsonl(tmp_path / "b.jsonl", [{"problem": "Two?", "answer": "2"}])
        prepare("dapo_math_17k", tmp_path / "train.parquet", origin=[str(train)])
        prepare("hmmt_feb_2025", tmp_path / "test.parquet", origin=[str(held_out)])
        dataset = load(tmp_path / "train.parquet", tmp_path / "test.parquet")
        assert [dataset[n]["data_source"] for n in range(2)] == ["dapo_math_17k", "hmmt_feb_2025"]

    @gsm8k.needs_gsm8k
    def test_real_problems(self, tmp_path, load):
        out = tmp_path / "train.parquet"
        report = prepare("gsm8k", out, origin=[str(gsm8k.FOLDER / "train.jsonl")])
        assert (report.read, report.written, report.dropped) == (7473, 7473, {})
        assert report.answers_not_whole == 0
        expected = [gsm8k.row(problem, number) for number, problem in enumerate(gsm8k.problems("train"))]
        written = pq.read_table(out).to_pylist()
        assert [row["reward_model"]["ground_truth"] for row in written] == [
            row["reward_model"]["ground_truth"] for row in expected
        ]
        assert [row["extra_info"]["problem"] for row in written] == [
            problem["question"].strip() for problem in gsm8k.problems("train")
        ]
        keys = dataset_keys(load(out))
        assert (keys.rows, keys.prompts) == (7473, 7473)
        assert check_file(out).fine

    @gsm8k.needs_gsm8k
    def test_real_problems_from_a_folder(self, tmp_path):
        out = tmp_path / "test.parquet"
        report = prepare("gsm8k", out, origin=[str(gsm8k.FOLDER)], split="test")
        assert (report.written, report.split) == (1319, "test")
        assert json.loads(pq.read_metadata(out).metadata[b"spo_verl.prepared"])["written"] == 1319

"""Every release, in small and with its exact columns, becomes verl's rows; from files and from folders."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spo_verl.data.prepare import SOURCES, SpoDataError, check_source, find_source, prepare
from spo_verl.data.prepare.streams import find_release
from spo_verl.data.prepare.templates import BOXED
from spo_verl.data.prepare.writing import SCHEMA
from tests.data.prepare.releases import CASES, MATH_ARENA, write_jsonl, write_parquet


def rows_of(file):
    return pq.read_table(file).to_pylist()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_of_a_file_become_verls(case, tmp_path):
    out = tmp_path / "out.parquet"
    report = prepare(case.source, out, origin=[str(case.write(tmp_path / "in"))])
    rows = rows_of(out)
    found = [
        (row["extra_info"]["problem"], row["reward_model"]["ground_truth"], row["extra_info"]["source_id"])
        for row in rows
    ]
    assert found == list(case.expected)
    assert [row["prompt"] for row in rows] == [
        [{"role": "user", "content": f"{problem}\n\n{BOXED}"}] for problem, _, _ in case.expected
    ]
    assert {row["data_source"] for row in rows} == {case.source}
    assert {(row["ability"], row["reward_model"]["style"]) for row in rows} == {("math", "rule")}
    assert [row["extra_info"]["index"] for row in rows] == list(range(len(rows)))
    split = "test" if SOURCES[case.source].use == "evaluation" else "train"
    assert {row["extra_info"]["split"] for row in rows} == {split}
    assert pq.read_schema(out).equals(SCHEMA)
    assert (report.read, report.written, report.dropped) == (len(rows), len(rows), {})


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_release_is_told_by_the_columns(case, tmp_path):
    file = case.write(tmp_path / "in")
    lines = file.suffix == ".jsonl"
    schema = pa.Table.from_pylist([json.loads(file.open().readline())]).schema if lines else pq.read_schema(file)
    [release] = [one for one in SOURCES[case.source].releases if one.name == case.release]
    found = find_release(SOURCES[case.source], schema)
    # Releases may have the same columns; which of them it was does not matter then.
    assert (found.problem, found.answer, found.messages) == (release.problem, release.answer, release.messages)
    assert find_release(SOURCES[case.source], schema, release) is release
    assert check_source(SOURCES[case.source], [str(file)]).fine


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_folder_is_read_like_its_files(case, tmp_path):
    case.write(tmp_path / "in")
    out = tmp_path / "out.parquet"
    prepare(case.source, out, origin=[str(tmp_path / "in")])
    assert [row["extra_info"]["problem"] for row in rows_of(out)] == [problem for problem, _, _ in case.expected]


def test_a_clone_with_configurations_is_read_in_the_releases_parts(tmp_path):
    # As the hub's repository: the card names the configurations, and each has a file of its own.
    folder = tmp_path / "AIME2025"
    write_jsonl(folder / "aime2025-I.jsonl", [{"question": "One?", "answer": "1"}])
    write_jsonl(folder / "aime2025-II.jsonl", [{"question": "Two?", "answer": "2"}])
    configs = "".join(
        f"- config_name: AIME2025-{part}\n  data_files:\n  - split: test\n    path: aime2025-{part}.jsonl\n"
        for part in ("I", "II")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    out = tmp_path / "out.parquet"
    report = prepare("aime_2025", out, origin=[str(folder)])
    assert [(row["extra_info"]["index"], row["extra_info"]["problem"]) for row in rows_of(out)] == [
        (0, "One?"),
        (1, "Two?"),
    ]
    assert report.details["parts"] == [["AIME2025-I", "test"], ["AIME2025-II", "test"]]
    prepare("aime_2025", out, origin=[str(folder)], config="AIME2025-II", force=True)
    assert [row["extra_info"]["problem"] for row in rows_of(out)] == ["Two?"]


def test_splits_of_a_folder_are_chosen_or_named(tmp_path):
    folder = tmp_path / "in"
    for split in ("train", "test"):
        write_jsonl(folder / f"{split}.jsonl", [{"question": f"{split}?", "answer": "#### 1"}])
    out = tmp_path / "out.parquet"
    for asked, expected in ((None, "train"), ("train", "train"), ("test", "test")):
        prepare("gsm8k", out, origin=[str(folder)], split=asked, force=True)
        [row] = rows_of(out)
        assert (row["extra_info"]["problem"], row["extra_info"]["split"]) == (f"{expected}?", expected)
    with pytest.raises(SpoDataError, match=r"has the splits .*: name one of them with --split instead of dev"):
        prepare("gsm8k", out, origin=[str(folder)], split="dev", force=True)


def test_several_files_are_one_source(tmp_path):
    files = [
        write_parquet(tmp_path / f"{n}.parquet", [{"problem_idx": n, "problem": f"{n}?", "answer": f"{n}"}], MATH_ARENA)
        for n in range(3)
    ]
    out = tmp_path / "out.parquet"
    prepare("brumo_2025", out, origin=list(map(str, files)))
    assert [row["extra_info"]["index"] for row in rows_of(out)] == [0, 1, 2]


def test_other_columns_are_told_with_those_that_are_known(tmp_path):
    file = write_jsonl(tmp_path / "x.jsonl", [{"frage": "1?", "antwort": "1"}])
    with pytest.raises(
        SpoDataError, match=r"\(frage, antwort\) are not those of AIME 2025\..*math-ai: problem and answer"
    ):
        prepare("aime_2025", tmp_path / "out.parquet", origin=[str(file)])
    assert not (tmp_path / "out.parquet").exists()


def test_a_text_column_is_not_taken_for_messages(tmp_path):
    # Both releases of DAPO call the problem `prompt`; one is a text, the other a list of messages.
    rows = [{"prompt": "1?", "reward_model": {"ground_truth": "1"}}]
    with pytest.raises(SpoDataError, match="are not those of DAPO-Math-17k"):
        prepare("dapo_math_17k", tmp_path / "out.parquet", origin=[str(write_jsonl(tmp_path / "x.jsonl", rows))])


def test_unknown_names_are_refused_with_the_known_ones(tmp_path):
    with pytest.raises(SpoDataError, match=r"no source 'aime': take one of dapo_math_17k, aime_2024"):
        find_source("aime")
    with pytest.raises(SpoDataError, match=r"no template 'box': take one of boxed, code, tool, none"):
        prepare("gsm8k", tmp_path / "x.parquet", template="box")


def test_the_agreed_names_and_hub_ids():
    assert list(SOURCES) == [
        "dapo_math_17k",
        "aime_2024",
        "aime_2025",
        "beyond_aime",
        "brumo_2025",
        "hmmt_feb_2025",
        "gsm8k",
    ]
    for source in SOURCES.values():
        assert len({release.name for release in source.releases}) == len(source.releases)
        assert len({release.hub_id for release in source.releases}) == len(source.releases)


@pytest.mark.parametrize(
    ("origin", "complaint"),
    [
        (["nowhere.parquet"], r"there is no file .*nowhere\.parquet"),
        (["data.txt"], r"data\.txt: files end with \.parquet, \.json, \.jsonl, \.csv, \.tsv; convert"),
        (["a.parquet", "b.jsonl"], "of different kinds"),
        (["a.parquet", "folder"], "one folder, or files, or one hub id"),
        (["damaged.parquet"], r"damaged\.parquet cannot be read"),
        (["damaged.jsonl"], r"damaged\.jsonl, line 1: not readable JSON"),
    ],
)
def test_files_that_cannot_be_read(origin, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "a.parquet", [{"problem": "1?", "answer": "1"}], MATH_ARENA)
    write_jsonl(tmp_path / "b.jsonl", [{"problem": "1?", "answer": "1"}])
    (tmp_path / "folder").mkdir()
    (tmp_path / "data.txt").write_text("problem,answer\n1?,1\n")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "damaged.jsonl").write_text('{"problem": "1?", "answer"')
    with pytest.raises(SpoDataError, match=complaint):
        prepare("brumo_2025", tmp_path / "out.parquet", origin=origin)
    assert sorted(path.name for path in tmp_path.iterdir() if "out" in path.name) == []


def test_a_dataset_saved_to_disk_is_read(tmp_path):
    import datasets

    saved = datasets.Dataset.from_list([{"problem": "1?", "answer": "1"}])
    saved.save_to_disk(tmp_path / "saved")
    prepare("brumo_2025", tmp_path / "out.parquet", origin=[str(tmp_path / "saved")])
    assert [row["extra_info"]["problem"] for row in rows_of(tmp_path / "out.parquet")] == ["1?"]
    with pytest.raises(SpoDataError, match="has no configurations: leave --config away"):
        prepare("brumo_2025", tmp_path / "x.parquet", origin=[str(tmp_path / "saved")], config="main")


HUB_IDS = [(source.name, release) for source in SOURCES.values() for release in source.releases]


@pytest.fixture
def hub(monkeypatch):
    """What `datasets.load_dataset` was asked for; it answers with one row that has the columns of every release."""
    import datasets

    asked = []

    def load_dataset(path, name=None, **options):
        asked.append((path, name, options))
        row = {"problem": f"{name}?", "Problem": "P?", "question": "q?", "answer": "#### 1", "Answer": "1"}
        messages = [{"content": "m?", "role": "user"}]
        row |= {"prompt": "p?", "solution": "1"} if "Processed" in path else {"prompt": messages}
        row |= {"answer": "1"} if "gsm8k" not in path else {}
        row["reward_model"] = {"ground_truth": "1", "style": "rule"}
        return datasets.Dataset.from_list([row]).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize(("name", "release"), HUB_IDS, ids=lambda one: getattr(one, "hub_id", one))
def test_a_hub_id_is_streamed_in_the_parts_of_its_release(name, release, hub, tmp_path):
    report = prepare(name, tmp_path / "out.parquet", origin=[release.hub_id])
    assert [(path, config, options["split"]) for path, config, options in hub] == [
        (release.hub_id, config, split) for config, split in release.parts
    ]
    assert all(options["streaming"] for _, _, options in hub)
    assert all(("batch_size" in options) == (release.format == "parquet") for _, _, options in hub)
    assert (report.release, report.documented_rows) == (release.name, release.documented_rows)
    assert any(f"(its page says {release.documented_rows})" in line for line in report.lines())


def test_the_default_is_the_first_release(hub, tmp_path):
    prepare("aime_2025", tmp_path / "out.parquet")
    assert hub[0][0] == SOURCES["aime_2025"].releases[0].hub_id == "yentinglin/aime_2025"


def test_configuration_and_split_of_a_hub_id_can_be_named(hub, tmp_path):
    report = prepare("gsm8k", tmp_path / "out.parquet", split="test")
    assert (hub[0][1], hub[0][2]["split"], report.split, report.documented_rows) == ("main", "test", "test", None)
    prepare("aime_2025", tmp_path / "x.parquet", origin=["someone/aime-copy"], config="part1", split="train")
    assert (hub[1][0], hub[1][1], hub[1][2]) == ("someone/aime-copy", "part1", {"streaming": True, "split": "train"})

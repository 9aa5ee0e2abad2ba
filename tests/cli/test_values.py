"""``spo-verl values``: importing, merging and showing, on files as users have them."""

import json

import numpy as np
import pytest
from omegaconf import OmegaConf

from spo_verl.cli.values import dump_files, kind_of
from spo_verl.config import SpoConfig
from spo_verl.data import dataset_keys
from spo_verl.data.data_files import Columns, DataFiles
from spo_verl.data.values import OfflineValues
from spo_verl.errors import SpoConfigError
from spo_verl.tracker import Tracker
from spo_verl.tracker.settings import TrackerSettings
from tests.cli.helpers import row, run, run_json, write_rows


@pytest.fixture
def data(tmp_path):
    rows = [row("1 + 1", "2", difficulty="6/8"), row("2 + 2", "4", difficulty="0/8"), row("3 + 3", "6", difficulty="")]
    return write_rows(tmp_path / "train.parquet", rows)


def counts(path):
    values = OfflineValues.read(path)
    return list(zip(values.successes_N.tolist(), values.trials_N.tolist(), strict=True))


def test_the_recipes_file_is_matched_and_what_is_left_over_is_said(tmp_path, data):
    source, out = tmp_path / "offline_values.json", tmp_path / "values.parquet"
    source.write_text(json.dumps({"1 + 1": [1, -1, 1], "9 + 9": [1]}))
    result = run(
        "values", "import", source, "--data", data, "-o", out, "--policy", "m", "--sampling", "temperature=0.7"
    )
    assert result.exit_code == 0
    assert counts(out) == [(2.0, 3)]
    assert OfflineValues.read(out).source[0]["sampling"] == {"temperature": 0.7}
    assert "1 of 3 prompts have a value" in result.stdout
    assert "'9 + 9'" in result.stdout
    assert "prompts without a value: 2" in result.stdout
    assert "mean value  0.667" in result.stdout


def test_the_import_as_json_lists_everything_that_did_not_match(tmp_path, data):
    source, out = tmp_path / "offline_values.json", tmp_path / "values.parquet"
    source.write_text(json.dumps({"1 + 1": [0.5, -1.0], "9 + 9": [1], "8 + 8": []}))
    ranged = ("--reward-low", "-1")  # [-1, 1]: 0.5 -> 0.75, -1 -> 0
    answer = run_json("values", "import", source, "--data", data, "-o", out, *ranged)
    assert counts(out) == [(0.75, 2)]
    assert answer["match"]["unmatched_entries"] == ["9 + 9", "8 + 8"]
    assert answer["match"]["unmatched_rows"] == [1, 2]
    assert answer["trials"] == 2


def test_a_folder_of_dumps(tmp_path, data):
    dumps = tmp_path / "dumps"
    dumps.mkdir()
    lines = [
        {"input": f"user\n{question}\nassistant\n", "output": "x", "gts": truth, "score": score, "step": 0, "acc": acc}
        for question, truth, score, acc in [("1 + 1", "2", -1.0, 0), ("1 + 1", "2", 1.0, 1), ("2 + 2", "4", 1.0, 1)]
    ]
    (dumps / "0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "values.parquet"
    assert run("values", "import", dumps, "--data", data, "-o", out, "--reward-key", "acc").exit_code == 0
    assert counts(out) == [(1.0, 2), (1.0, 1)]
    refused = run("values", "import", dumps, "--data", data, "-o", out)
    assert refused.exit_code == 2
    assert "has 'score' = -1.0" in refused.stderr


def test_dump_files_come_in_the_order_of_steps(tmp_path):
    for name in ("10", "2", "0"):
        (tmp_path / f"{name}.jsonl").touch()
    other = tmp_path / "other.jsonl.txt"
    assert [path.name for path in dump_files([tmp_path, other])] == ["0.jsonl", "2.jsonl", "10.jsonl", other.name]


def test_a_column_of_accuracies(tmp_path, data):
    out = tmp_path / "values.parquet"
    assert run("values", "import", "--column", "difficulty", "--data", data, "-o", out).exit_code == 0
    assert counts(out) == [(6.0, 8), (0.0, 8)]


def test_the_tracker_of_another_run(tmp_path, data):
    keys = dataset_keys(DataFiles([data]))
    tracker = Tracker.create(
        keys.key_P, TrackerSettings.of(SpoConfig()), alpha_P=np.array([6.0, 0.5, 0.5]), beta_P=np.array([2.0, 0.5, 0.5])
    )
    folder = tmp_path / "global_step_3" / "spo"
    tracker.snapshot().write(folder, step=3)
    out = tmp_path / "values.parquet"
    answer = run_json("values", "import", folder, "--data", data, "-o", out)
    assert counts(out) == [(6.0, 8)]  # v = 6 / 8 with N_eff = 8
    assert (answer["match"]["prompts"], answer["match"]["matched"]) == (3, 1)


def test_merge_adds_and_guards_policies(tmp_path, data):
    files = []
    for name, scores in (("a", [1, 1]), ("b", [0, 1])):
        source, out = tmp_path / f"{name}.json", tmp_path / f"{name}.parquet"
        source.write_text(json.dumps({"1 + 1": scores}))
        run("values", "import", source, "--data", data, "-o", out, "--policy", name)
        files.append(out)
    out = tmp_path / "both.parquet"
    refused = run("values", "merge", *files, "-o", out)
    assert refused.exit_code == 2
    assert "2 policies ('a', 'b')" in refused.stderr
    assert not out.exists()
    assert run("values", "merge", *files, "-o", out, "--mixed-policies").exit_code == 0
    assert counts(out) == [(3.0, 4)]


def test_show_says_how_much_of_a_dataset_is_covered(tmp_path, data):
    out = tmp_path / "values.parquet"
    run("values", "import", "--column", "difficulty", "--data", data, "-o", out)
    text = run("values", "show", out, "--data", data).stdout
    assert "offline values cover 2 of 3 prompts (66.7%) with 16 trials" in text
    assert "never solved 1, always solved 0" in text
    assert "0.7 to 0.8         1  #" in text
    coverage = run_json("values", "show", out, "--data", data)["coverage"]
    assert (coverage["covered"], coverage["prompts"]) == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        (["show", "nowhere.parquet"], "check the path"),
        (["import", "-o", "x.parquet"], "cannot tell what to import from no source"),
        (["import", "--column", "difficulty", "-o", "x.parquet"], "name the files with --data"),
        (["import", "--kind", "column", "--data", "DATA", "-o", "x.parquet"], "add --column NAME"),
        (["import", "--kind", "reference", "--data", "DATA", "-o", "x.parquet"], "reads one source, not 0"),
        (["import", "--column", "none", "--data", "DATA", "-o", "x.parquet"], "under 'none'"),
        (["import", "--column", "c", "--data", "nowhere.parquet", "-o", "x.parquet"], "check --data"),
        (["import", "--column", "c", "--data", "data.csv", "-o", "x.parquet"], ".parquet, .json, .jsonl"),
        (["import", "--column", "c", "--data", "DATA", "-o", "x.parquet", "--sampling", "hot"], "temperature=1.0"),
        (["import", "--column", "c", "--data", "DATA", "-o", "x.parquet", "--reward-low", "2"], "is not below"),
    ],
)
def test_mistakes_are_told_with_the_fix_and_nothing_is_written(arguments, fix, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("values", *(str(data) if argument == "DATA" else argument for argument in arguments))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert fix in result.stderr
    assert not (tmp_path / "x.parquet").exists()


def test_kinds_are_told_by_name(tmp_path):
    (tmp_path / "spo").mkdir()
    (tmp_path / "spo" / "manifest.json").touch()
    (tmp_path / "0.jsonl").touch()
    assert kind_of([tmp_path / "spo"], None) == "tracker"
    assert kind_of([tmp_path], None) == "dump"
    assert kind_of([tmp_path / "0.jsonl", tmp_path / "1.jsonl"], None) == "dump"
    assert kind_of([tmp_path / "offline_values.json"], None) == "reference"
    assert kind_of([], "difficulty") == "column"
    for paths, column in (([tmp_path / "a.json", tmp_path / "b.json"], None), ([tmp_path / "a.json"], "c"), ([], None)):
        with pytest.raises(SpoConfigError, match="--kind says which"):
            kind_of(paths, column)


def test_a_damaged_data_file_is_an_error_with_its_name(tmp_path):
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1 but no more")
    result = run("values", "import", "--column", "c", "--data", path, "-o", tmp_path / "x.parquet")
    assert result.exit_code == 2
    assert "train.parquet cannot be read" in result.stderr


def test_prompts_are_identified_as_in_verls_dataset(tmp_path):
    from verl.utils.dataset.rl_dataset import RLHFDataset

    rows = [
        {"data_source": "d", "asked": [{"role": "user", "content": text}], "reward_model": {"ground_truth": "1"}}
        for text in ("a", "b", "a")
    ]
    paths = [write_rows(tmp_path / f"{part}.parquet", rows) for part in (1, 2)]
    settings = OmegaConf.create(
        {"cache_dir": str(tmp_path / "verl"), "filter_overlong_prompts": False, "prompt_key": "asked"}
    )
    of_verl = dataset_keys(RLHFDataset([str(path) for path in paths], None, settings))
    ours = dataset_keys(DataFiles(paths, Columns(prompt="asked")))
    assert ours.key_P.tobytes() == of_verl.key_P.tobytes()
    assert (ours.prompts, ours.rows) == (2, 6)
    assert DataFiles(paths)[3]["asked"] == rows[0]["asked"]

"""``spo-verl recipes``: listed, shown, and copied without overwriting, wherever the current folder is."""

import pytest

from spo_verl.launching.recipe_files import builds_on, described, experiment_of, files_of
from spo_verl.launching.recipes import known_recipes
from tests.cli.helpers import run, run_json
from tests.recipes.helpers import RECIPES, ROOT


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("SPO_RECIPES_DIR", raising=False)
    return tmp_path / "work"


def mine(elsewhere, name="gsm8k_qwen3_0_6b/spo", text="# Of my own.\ndefaults: [/ppo_trainer, _self_]\n"):
    file = elsewhere / "recipes" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_all_are_listed_far_from_the_checkout_with_a_sentence_each():
    listed = run_json("recipes", "ls")["recipes"]
    assert [entry["name"] for entry in listed] == list(RECIPES)
    assert {entry["folder"] for entry in listed} == {str(ROOT)}
    assert all(10 < len(entry["what"]) < 220 for entry in listed)
    assert "GSM8K with Qwen3-0.6B" in run("recipes", "ls").stdout


def test_those_of_the_current_folder_come_first_and_the_variable_stands_alone(elsewhere, monkeypatch):
    mine(elsewhere)
    mine(elsewhere, "other/one")
    known = known_recipes()
    assert known["gsm8k_qwen3_0_6b/spo"] == known["other/one"] == elsewhere / "recipes"
    assert known["ablations/spo"] == ROOT
    assert described(elsewhere / "recipes", "other/one") == "Of my own"
    monkeypatch.setenv("SPO_RECIPES_DIR", str(elsewhere / "recipes"))
    assert list(known_recipes()) == ["gsm8k_qwen3_0_6b/spo", "other/one"]
    monkeypatch.setenv("SPO_RECIPES_DIR", str(elsewhere / "nothing"))
    assert run("recipes", "ls").exit_code == 2


def test_an_experiment_is_copied_with_what_it_builds_on(elsewhere):
    data = run_json("recipes", "cp", "ablations/token_measure")
    folder = elsewhere / "recipes"
    assert data["kept"] == []
    assert sorted(path.name for path in folder.iterdir()) == ["ablations", "qwen3_8b_math_tir", "run.sh"]
    assert sorted(data["written"]) == sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    for file in data["written"]:
        assert (folder / file).read_bytes() == (ROOT / file).read_bytes()


def test_nothing_is_overwritten(elsewhere):
    own = mine(elsewhere)
    before = own.read_text()
    refused = run("recipes", "cp", "gsm8k_qwen3_0_6b")
    assert (refused.exit_code, own.read_text()) == (2, before)
    assert "would be overwritten" in refused.stderr
    assert [path.name for path in (elsewhere / "recipes").iterdir()] == ["gsm8k_qwen3_0_6b"]
    assert run("recipes", "cp", "gsm8k_qwen3_0_6b/grpo", "other").exit_code == 0
    assert run("recipes", "cp", "gsm8k_qwen3_0_6b/grpo", "other").exit_code == 2
    (elsewhere / "file").write_text("")
    assert run("recipes", "cp", "gsm8k_qwen3_0_6b", "file").exit_code == 2


def test_what_another_experiment_builds_on_is_kept_as_the_user_has_it(elsewhere):
    assert run("recipes", "cp", "qwen3_8b_math_tir").exit_code == 0
    changed = elsewhere / "recipes" / "qwen3_8b_math_tir" / "spo.yaml"
    changed.write_text("# changed\ndefaults: []\n")
    data = run_json("recipes", "cp", "ablations")
    assert data["kept"] == ["qwen3_8b_math_tir", "run.sh"]
    assert changed.read_text() == "# changed\ndefaults: []\n"


def test_an_unknown_name_is_answered_with_the_known_ones():
    result = run("recipes", "cp", "nothing/at_all")
    assert result.exit_code == 2
    assert "experiments: ablations, async, gsm8k_qwen3_0_6b" in result.stderr


@pytest.mark.parametrize("name", sorted({recipe.partition("/")[0] for recipe in RECIPES}))
def test_a_copied_experiment_names_no_file_that_was_left_behind(name, elsewhere):
    """Whatever its recipes' defaults lists name below the root is in the copy."""
    run("recipes", "cp", name, "copy")
    copy = elsewhere / "copy"
    assert experiment_of(name) == (ROOT, name)
    for recipe in (recipe for recipe in RECIPES if recipe.startswith(f"{name}/")):
        needed = [path.relative_to(ROOT) for path in files_of(ROOT, recipe)]
        assert [path for path in needed if not (copy / path).is_file()] == []
    assert {path.name for path in copy.iterdir() if path.is_dir()} == set(builds_on(ROOT, name))


@pytest.mark.long
def test_a_recipe_is_shown_with_what_it_trains(elsewhere):
    data = run_json("recipes", "show", "gsm8k_qwen3_0_6b/spo", "data.train_batch_size=64")
    assert data["trains"]["estimator"] == "spo"
    assert data["trains"]["prompts per step"] == 64
    assert data["trains"]["training data"] == ["data/gsm8k_train.parquet"]
    assert data["files"][0] == str(ROOT / "gsm8k_qwen3_0_6b" / "spo.yaml")
    assert data["start"] == [str(ROOT / "run.sh"), "gsm8k_qwen3_0_6b/spo", "data.train_batch_size=64"]
    assert "start:  " in run("recipes", "show", "gsm8k_qwen3_0_6b/spo").stdout


def test_each_folder_comes_before_its_recipes(elsewhere):
    mine(elsewhere, "other/one")
    lines = run("recipes", "ls").stdout.splitlines()
    places = [lines.index(f"in {root}:") for root in (ROOT, elsewhere / "recipes")]
    of_mine = next(number for number, line in enumerate(lines) if line.startswith("other/one"))
    of_package = [number for number, line in enumerate(lines) if line.split(" ")[0] in RECIPES]
    first, second = sorted(places)
    assert len(of_package) == len(RECIPES)
    for at, root in ((of_mine, elsewhere / "recipes"), *((number, ROOT) for number in of_package)):
        assert (at > second) == (lines.index(f"in {root}:") == second), lines[at]
        assert at > first

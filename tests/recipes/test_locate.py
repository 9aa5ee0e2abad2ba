"""What is said where a recipe is not there or refuses."""

import pytest

from spo_verl.errors import SpoConfigError
from spo_verl.launching.recipe_files import copy_experiment
from spo_verl.launching.recipes import CommandLine, Recipe, accepted, find_recipe, find_run
from tests.recipes.helpers import ROOT


@pytest.fixture(autouse=True)
def root(monkeypatch):
    monkeypatch.setenv("SPO_RECIPES_DIR", str(ROOT))


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(SpoConfigError, match="there are: ablations/constant_retention, "):
        find_recipe("gsm8k/spo")


def test_an_absent_file_is_named():
    with pytest.raises(SpoConfigError, match=r"no recipe file nowhere\.yaml"):
        find_recipe("nowhere.yaml")


def test_without_recipes_the_variable_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("SPO_RECIPES_DIR", str(tmp_path / "none"))
    with pytest.raises(SpoConfigError, match="SPO_RECIPES_DIR"):
        find_recipe("gsm8k_qwen3_0_6b/spo")


def test_all_refused_overrides_are_listed():
    with pytest.raises(SpoConfigError) as refusal:
        accepted(find_recipe("gsm8k_qwen3_0_6b/spo"), ["data.foo=1", "trainer.bar=2", "spo.seed=3"])
    assert "data.foo=1" in str(refusal.value)
    assert "trainer.bar=2" in str(refusal.value)
    assert "spo.seed" not in str(refusal.value)


def test_overrides_win_over_the_recipe():
    config = accepted(find_recipe("gsm8k_qwen3_0_6b/spo"), ["data.train_batch_size=64", "spo.seed=3"]).config
    assert (config.data.train_batch_size, config.spo.seed) == (64, 3)
    assert config.recipes_dir == str(ROOT)


def words(text):
    source, overrides = find_run(text.split())
    return source, overrides


def test_a_recipe_with_its_overrides():
    for text in ("gsm8k_qwen3_0_6b/spo a=1 +b=2 ~c", f"{ROOT}/run.sh gsm8k_qwen3_0_6b/spo a=1 +b=2 ~c"):
        source, overrides = words(text)
        assert (source, overrides) == (Recipe(ROOT, "gsm8k_qwen3_0_6b/spo"), ["a=1", "+b=2", "~c"])


@pytest.mark.parametrize(
    "before",
    ["", "python -m verl.trainer.main_ppo ", "A=1 B= python3.11 -u -m verl.trainer.main_ppo ", "main_ppo.py ",
     "torchrun --nnodes 1 /x/verl/trainer/main_ppo.py "],
)  # fmt: skip
def test_a_command_line_with_or_without_what_starts_it(before, tmp_path):
    for first in ("a.b=1", "+spo=paper", "~c", "++d=x=y"):
        assert words(f"{before}{first} e=2") == (CommandLine(), [first, "e=2"])
    flags = f"--config-name mine --config-dir={tmp_path}"
    assert words(f"{before}{flags} a=1 -cn other") == (CommandLine("other", tmp_path), ["a=1"])
    assert words(f"{before}--config-path {tmp_path} a=1")[0].options() == ["--config-path", str(tmp_path)]


def test_the_whole_command_may_be_one_text():
    text = "A=1 python -m verl.trainer.main_ppo \\\n    +spo=paper \\\n    'data.train_files=[a b.parquet]'\n"
    assert find_run([text]) == (CommandLine(), ["+spo=paper", "data.train_files=[a b.parquet]"])
    with pytest.raises(SpoConfigError, match="close its quotes"):
        find_run(["python -m verl.trainer.main_ppo 'a=1"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("+spo=paper --gpsu 8", "no option --gpsu"),
        ("gsm8k_qwen3_0_6b/spo --config-name x", "no option --config-name"),
        ("a=1 --config-name", "names nothing"),
        ("a=1 --config-dir nowhere", "no folder nowhere"),
        ("main_ppo --config-path conf", "no folder .*trainer/conf"),
        ("main_ppo --multirun a=1", "no option --multirun"),
        (f"{ROOT}/run.sh no/recipe", "there are: ablations/"),
        ("run_grpo.sh", "is a script, which `spo-verl convert` alone reads"),
        ("no_recipe", "command line of yours begins with an override"),
    ],
)
def test_what_is_no_run_is_refused(text, said):
    with pytest.raises(SpoConfigError, match=said):
        words(text)


PLAIN = "%YAML 1.1\n---\n# mine\n{data: {train_batch_size: 64}, actor_rollout_ref: {actor: {optim: {lr: 1e-6}}}}\n"


@pytest.mark.parametrize("text", [PLAIN, "\ufeffdata:\n  train_batch_size: 64\n"])
def test_a_plain_file_lies_on_top_of_verls_configuration(tmp_path, text):
    file = tmp_path / "a run=1" / "mine (2).yaml"
    file.parent.mkdir()
    file.write_text(text, encoding="utf-8")
    source = find_recipe(str(file))
    assert source.plain
    composed = source.compose(["data.max_prompt_length=7"])
    assert composed.problems == []
    assert (composed.config.data.train_batch_size, composed.config.data.max_prompt_length) == (64, 7)
    assert composed.config.trainer.nnodes == 1
    placed = source.launchable(tmp_path)
    assert (placed.plain, placed.root) == (False, tmp_path)
    assert placed.compose(["data.max_prompt_length=7"]).config.data == composed.config.data


@pytest.mark.parametrize("text", ["- a\n", "", "7\n", "text\n", "services: {web: {image: x}}\n"])
def test_a_file_without_sections_is_refused(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(SpoConfigError):
        find_recipe(str(tmp_path / "mine.yaml"))


def test_a_copied_experiment_is_found_by_path_and_by_name(tmp_path, monkeypatch):
    monkeypatch.delenv("SPO_RECIPES_DIR")
    monkeypatch.chdir(tmp_path)
    copy_experiment("ablations", tmp_path / "copies")
    found = find_recipe("copies/ablations/token_measure.yaml")
    assert (found.root, found.name) == (tmp_path / "copies", "ablations/token_measure")
    assert found.compose().config.spo.advantage.measure == "token"
    assert find_recipe("ablations/token_measure").root == ROOT

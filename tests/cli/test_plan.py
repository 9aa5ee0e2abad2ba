"""``spo-verl plan``: composed recipe in, tables or JSON out."""

import pytest

from spo_verl.planning.formulas import SYMBOLS
from tests.cli.helpers import run, run_json

RECIPE = """# @package _global_
defaults: [/ppo_trainer, /spo: paper, _self_]
data: {train_batch_size: 2048, max_prompt_length: 2048, max_response_length: 8192}
actor_rollout_ref:
  model: {path: Qwen/Qwen3-8B}
  actor: {use_dynamic_bsz: true, ppo_max_token_len_per_gpu: 10240}
  rollout: {name: vllm}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    (tmp_path / "recipes" / "big").mkdir(parents=True)
    path = tmp_path / "recipes" / "big" / "spo.yaml"
    path.write_text(RECIPE)
    monkeypatch.setenv("SPO_RECIPES_DIR", str(tmp_path / "recipes"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return path


def test_json_has_every_figure_with_its_formula_and_overrides_count(recipe):
    data = run_json(
        "plan", "big/spo", "spo.forgetting.reference=updated", "--gpus", 16, "--nodes", 2, "--prompts", 14000
    )
    assert data["model"]["name"].endswith("Qwen3-8B")
    assert data["gpus"] == {"training": 32, "rollout": 32, "separate": False}
    drift = data["sections"]["operations of a step, expected lengths"]["drift"]
    assert drift["formula"] == "drift"
    assert drift["inputs"]["f_n"] == 1
    assert data["sections"]["tracker"]["tracker"]["value"] == 14000 * 48
    assert data["fits"] is True


def test_tables_verdicts_and_the_formulae_with_numbers(recipe):
    result = run("plan", str(recipe), "--explain", "--prompts", 14000)
    assert result.exit_code == 0
    assert "kv_per_token = 2*L*n_k*d*b_kv" in result.stdout
    assert "L=36, n_k=8, d=128, b_kv=2" in result.stdout
    assert f"n_k: {SYMBOLS['n_k']}" in result.stdout
    assert "fits          actor update" in result.stdout
    assert "half of the limit; say it with --response-tokens" in result.stdout


def test_what_does_not_fit_is_status_1_with_the_key(recipe):
    result = run("plan", "big/spo", "--gpu-memory", 24)
    assert result.exit_code == 1
    assert "DOES NOT FIT" in result.stdout
    assert "actor_rollout_ref." in result.stdout


def test_an_unknown_model_is_status_2_with_the_option(recipe):
    result = run("plan", "big/spo", "actor_rollout_ref.model.path=nobody/nothing")
    assert result.exit_code == 2
    assert "--model-config" in result.stderr


def test_an_unknown_recipe_and_a_refused_override(recipe):
    assert run("plan", "big/none").exit_code == 2
    result = run("plan", "big/spo", "data.foo=1")
    assert result.exit_code == 2
    assert "data.foo" in result.stderr


def test_prompts_are_counted_in_the_files_that_are_there(recipe, tmp_path):
    from tests.cli.helpers import row, write_rows

    file = write_rows(tmp_path / "train.parquet", [row(str(number), "1") for number in range(3000)])
    data = run_json("plan", "big/spo", f"data.train_files={file}")
    assert data["sections"]["tracker"]["tracker"]["value"] == 3000 * 48

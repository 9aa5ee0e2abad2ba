"""What is said where a recipe is not there or refuses."""

import pytest

from spo_verl.errors import SpoConfigError
from spo_verl.launching.recipes import compose_recipe, find_recipe
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
        compose_recipe("gsm8k_qwen3_0_6b/spo", ["data.foo=1", "trainer.bar=2", "spo.seed=3"])
    assert "data.foo=1" in str(refusal.value)
    assert "trainer.bar=2" in str(refusal.value)
    assert "spo.seed" not in str(refusal.value)


def test_overrides_win_over_the_recipe():
    config = compose_recipe("gsm8k_qwen3_0_6b/spo", ["data.train_batch_size=64", "spo.seed=3"])
    assert (config.data.train_batch_size, config.spo.seed) == (64, 3)
    assert config.recipes_dir == str(ROOT)

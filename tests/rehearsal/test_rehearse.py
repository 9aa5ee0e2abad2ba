"""Rehearsals: where one stops without a launch, and real ones. One runs by default, all others are slow."""

import json

import pytest

from spo_verl.errors import SpoConfigError
from spo_verl.rehearsal import rehearse as module
from spo_verl.rehearsal.rehearse import absent_modules, rehearse
from tests.recipes.helpers import RECIPES, ROOT, composed, real_rows, sums, write
from tests.support.gsm8k import needs_gsm8k

DEFAULT = "gsm8k_qwen3_0_6b/spo"


@pytest.fixture(autouse=True)
def root(monkeypatch):
    monkeypatch.setenv("SPO_RECIPES_DIR", str(ROOT))


@pytest.fixture
def data(tmp_path):
    return [write(sums(120), tmp_path / "rows.parquet")]


@pytest.fixture
def never_launched(monkeypatch):
    monkeypatch.setattr(module, "_launch", lambda *_, **__: pytest.fail("launched"))


@pytest.mark.parametrize("there", [False, True])
def test_megatron_says_how_far_it_got_and_why_it_stops(tmp_path, data, never_launched, monkeypatch, there):
    known = module._importable
    monkeypatch.setattr(module, "_importable", lambda name: there if name == "megatron.core" else known(name))
    found = rehearse(DEFAULT, ["model_engine=megatron"], data=data, folder=tmp_path / "out")
    assert [stage.name for stage in found.stages] == ["composed", "validated", "data and stand-in", "reduced"]
    assert ("for CUDA devices only" if there else "megatron-core is not installed") in found.stopped
    assert not found.passed
    saved = json.loads((tmp_path / "out" / "rehearsal.json").read_text())
    assert saved["stopped"] == found.stopped
    assert (saved["engine"], saved["passed"]) == ("megatron", False)


def test_a_recipe_that_is_not_accepted_stops_before_anything_is_made(tmp_path, data, never_launched):
    found = rehearse(DEFAULT, ["spo.forgetting.rho_min=0.99"], data=data, folder=tmp_path / "out")
    assert [stage.name for stage in found.stages] == ["composed"]
    assert "rho_min=0.99" in found.stopped
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["rehearsal.json"]


def test_a_module_that_is_not_there_stops_it(tmp_path, data, never_launched):
    override = "reward.custom_reward_function.path=pkg://no_such.reward"
    found = rehearse(DEFAULT, [override], data=data, folder=tmp_path / "out")
    assert found.stopped.startswith("not there: no_such.reward")
    assert absent_modules(composed("qwen3_8b_math_tir/spo").config) == []


def test_a_folder_in_use_is_left_alone(tmp_path, data):
    with pytest.raises(SpoConfigError, match="is not empty"):
        rehearse(DEFAULT, data=data, folder=tmp_path)


def test_without_rows_the_command_that_makes_them_is_named(tmp_path, never_launched):
    with pytest.raises(SpoConfigError, match=r"spo-verl data prepare"):
        rehearse(DEFAULT, ["data_dir=/nowhere"], folder=tmp_path / "out")


def passes(name, tmp_path):
    rows = real_rows(tmp_path / "rows.parquet")
    found = rehearse(name, data=[rows], folder=tmp_path / "out")
    assert found.stopped is None
    assert [check for check in found.checks if not check.ok] == []
    assert found.passed
    assert found.peak_gib < 12


@needs_gsm8k
@pytest.mark.system
@pytest.mark.timeout(900)
def test_a_recipe_is_rehearsed_on_real_rows(tmp_path):
    passes(DEFAULT, tmp_path)


@needs_gsm8k
@pytest.mark.slow
@pytest.mark.system
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name in RECIPES if name != DEFAULT])
def test_every_other_recipe_is_rehearsed_on_real_rows(name, tmp_path):
    passes(name, tmp_path)

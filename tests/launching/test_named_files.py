"""Files that a configuration names and that are not there are found, each by its key, with what to do."""

import importlib.util
import sys

import pytest
from omegaconf import OmegaConf

from spo_verl.launching.named_files import faults
from tests.cli.helpers import row, write_rows

GOOD_FUNCTION = "from math import sqrt as compute_score\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    write_rows(tmp_path / "train.parquet", [row("1 + 1", "2")])
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "empty.parquet").write_text("")
    (tmp_path / "torn.parquet").write_text("PAR1 and no more")
    (tmp_path / "table.csv").write_text("a\n")
    (tmp_path / "reward.py").write_text(GOOD_FUNCTION)
    (tmp_path / "other.py").write_text("def compute_scores(): ...\n")
    (tmp_path / "broken.py").write_text("def (\n")
    (tmp_path / "tools.yaml").write_text("tools: []\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "hollow").mkdir()
    (tmp_path / "ckpt" / "global_step_5" / "actor").mkdir(parents=True)
    (tmp_path / "ckpt" / "global_step_6").mkdir()
    return tmp_path


def of(settings):
    """The faults of a configuration with these dotted keys."""
    config = OmegaConf.create()
    for key, value in settings.items():
        OmegaConf.update(config, key, value)
    return list(faults(config))


FUNCTION, MODEL = "reward.custom_reward_function.path", "actor_rollout_ref.model"
TURNS, RESUME = "actor_rollout_ref.rollout.multi_turn", {"trainer.resume_mode": "resume_path"}
TRAIN = {"data.train_files": "train.parquet"}
FINE = [
    {"data.train_files": "train.parquet", "data.val_files": ["~/train.parquet", "rows.jsonl", "*.parquet"]},
    {"data.train_files": ["hdfs://x/y.parquet", "https://h/y.parquet", "s3://b/y.parquet"]},
    {"data.train_files": "table.csv", "data.custom_cls": {"path": "reward.py", "name": "compute_score"}},
    {FUNCTION: "reward.py"},
    {FUNCTION: "file://reward.py"},
    {FUNCTION: "pkg://spo_verl.agent.math_reward"},
    {FUNCTION: "pkg://spo_verl/agent/math_reward"},
    {FUNCTION: "pkg://reward"},  # python -m has the current folder on its path
    {f"{MODEL}.path": "Qwen/Qwen3-8B"},
    {f"{MODEL}.path": "gpt2"},
    {f"{MODEL}.path": "model", f"{MODEL}.tokenizer_path": "hollow"},
    {f"{MODEL}.path": "hdfs://x/model"},
    {f"{MODEL}.custom_chat_template": "{% for m in messages %}{{ m }}{% endfor %}"},
    {f"{TURNS}.tool_config_path": "tools.yaml", f"{TURNS}.function_tool_path": None},
    {f"{TURNS}.tool_config_path": "trainer/config/ppo_trainer.yaml"},  # below verl's package
    {**RESUME, "trainer.resume_from_path": "ckpt/global_step_5"},
    {"reward.reward_model": {"enable": False, "model_path": "/no/model"}},
    {"distillation": {"enabled": False, "teacher_models": {"t": {"model_path": "/no/model"}}}},
    {"reward.reward_manager": {"source": "register", "module": {"path": "no.py"}}},
    {
        "data.train_files": "train.parquet",
        "spo.value.features": ["reward_model.ground_truth", "reward:f", "spo_verl.errors:f"],
    },
    {"data.train_files": "rows.jsonl", "spo.value.features": ["difficulty"]},
    {"data.train_files": "hdfs://x/y.parquet", "spo.value.features": ["difficulty"]},
]
MISSING = [  # settings, key of the fault, what its text says
    ({"data.train_files": "no.parquet"}, "data.train_files", "there is no file {place}/no.parquet"),
    ({"data.train_files": "trian.parquet"}, "data.train_files", "there is {place}/train.parquet"),
    ({"data.train_files": "no/such/x.parquet"}, "data.train_files", "not even {place}/no"),
    ({"data.train_files": "table.csv/x.parquet"}, "data.train_files", "as {place}/table.csv is no folder; correct"),
    ({"data.train_files": "table.csv/a/b/x.parquet"}, "data.train_files", "as {place}/table.csv is no folder; correct"),
    ({f"{MODEL}.path": "./table.csv/model"}, f"{MODEL}.path", "as {place}/table.csv is no folder; correct"),
    ({"data.val_files": ["train.parquet", "no.parquet"]}, "data.val_files", "data.val_files=no.parquet"),
    ({"data.val_files": "no*.parquet"}, "data.val_files", "fits the pattern"),
    ({"data.val_files": "hollow"}, "data.val_files", "this is a folder"),
    ({"data.train_files": "empty.parquet"}, "data.train_files", "the file is empty"),
    ({"data.train_files": "table.csv"}, "data.train_files", "verl reads .parquet"),
    ({FUNCTION: "no.py"}, FUNCTION, "no file {place}/no.py"),
    ({FUNCTION: "other.py"}, FUNCTION, "set reward.custom_reward_function.name=compute_scores"),
    ({FUNCTION: "reward.py", "reward.custom_reward_function.name": "f"}, FUNCTION, "it defines no f"),
    ({FUNCTION: "broken.py"}, FUNCTION, "Python cannot read"),
    ({FUNCTION: "pkg://no_such_module.x"}, FUNCTION, "no Python module no_such_module"),
    ({FUNCTION: "pkg://spo_verl.agent.nothing"}, FUNCTION, "no Python module spo_verl.agent.nothing"),
    ({"custom_reward_function.path": "no.py"}, "custom_reward_function.path", "no file"),
    ({"data.custom_cls.path": "no.py"}, "data.custom_cls.path", "no file"),
    (
        {"reward.reward_manager": {"source": "importlib", "module": {"path": "no.py"}}},
        "reward.reward_manager.module.path",
        "no file",
    ),
    ({f"{MODEL}.path": "/no/model"}, f"{MODEL}.path", "there is no folder /no/model"),
    ({f"{MODEL}.path": "./no"}, f"{MODEL}.path", "or give an id of the Hugging Face hub"),
    ({f"{MODEL}.path": "ckpt/model"}, f"{MODEL}.path", "would ask the Hugging Face hub"),
    ({f"{MODEL}.path": "hollow"}, f"{MODEL}.path", "no config.json"),
    ({f"{MODEL}.path": "model/"}, f"{MODEL}.path", "ends in a slash; write model"),
    ({f"{MODEL}.path": "~/model"}, f"{MODEL}.path", "write {place}/model"),
    ({f"{MODEL}.path": "reward.py"}, f"{MODEL}.path", "this is a file"),
    ({f"{MODEL}.lora_adapter_path": "model"}, f"{MODEL}.lora_adapter_path", "no adapter_config.json"),
    ({f"{MODEL}.custom_chat_template": "chat.jinja"}, f"{MODEL}.custom_chat_template", "text of the template"),
    (
        {"reward.reward_model": {"enable": True, "model_path": "/no/model"}},
        "reward.reward_model.model_path",
        "no folder",
    ),
    (
        {"distillation": {"enabled": True, "teacher_models": {"t": {"model_path": "/no/model"}}}},
        "distillation.teacher_models.t.model_path",
        "no folder",
    ),
    ({f"{TURNS}.tool_config_path": "no.yaml"}, f"{TURNS}.tool_config_path", "no file {place}/no.yaml"),
    ({f"{TURNS}.function_tool_path": "hollow"}, f"{TURNS}.function_tool_path", "this is a folder"),
    (
        {**TRAIN, "spo.value.features": ["difficulty"]},
        "spo.value.features",
        "no column 'difficulty', only ['data_source'",
    ),
    (
        {**TRAIN, "spo.value.features": ["reward_model.no"]},
        "spo.value.features",
        "no 'no' in 'reward_model', only ['ground",
    ),
    ({"spo.value.features": ["no_such_module.x:f"]}, "spo.value.features", "no Python module no_such_module"),
    (
        {"data.train_files": "torn.parquet", "spo.value.features": ["difficulty"]},
        "data.train_files",
        "cannot be read as Parquet",
    ),
    ({"spo.initial.values": "no.parquet"}, "spo.initial.values", "spo-verl values estimate"),
    ({"spo.initial.values": "table.csv"}, "spo.initial.values", "Parquet"),
    ({"spo.initial.tracker": "no/spo"}, "spo.initial.tracker", "no folder {place}/no/spo"),
    ({"spo.initial.tracker": "ckpt"}, "spo.initial.tracker", "no manifest.json"),
    ({**RESUME, "trainer.resume_from_path": None}, "trainer.resume_from_path", "needs the folder of a step"),
    ({**RESUME, "trainer.resume_from_path": "ckpt"}, "trainer.resume_from_path", "needs the folder of a step"),
    ({**RESUME, "trainer.resume_from_path": "ckpt/global_step_5/"}, "trainer.resume_from_path", "without a slash"),
    ({**RESUME, "trainer.resume_from_path": "ckpt/global_step_6"}, "trainer.resume_from_path", "no actor"),
    ({**RESUME, "trainer.resume_from_path": "ckpt/global_step_7"}, "trainer.resume_from_path", "no folder"),
]


@pytest.mark.parametrize("settings", FINE)
def test_what_verl_can_read_is_no_fault(place, settings):
    assert of(settings) == []


@pytest.mark.parametrize(("settings", "key", "said"), MISSING)
def test_what_is_not_there_is_named_with_its_key(place, settings, key, said):
    [fault] = of(settings)
    assert fault.key == key
    assert fault.text.startswith(f"{key}=")
    assert said.format(place=place) in fault.text
    assert fault.stops


def test_a_checkpoint_that_is_not_read_is_a_remark(place):
    [fault] = of({"trainer.resume_mode": "auto", "trainer.resume_from_path": "ckpt/global_step_5"})
    assert not fault.stops
    assert "resume_mode=resume_path" in fault.text


def test_without_the_network_a_model_that_is_not_in_the_cache_is_named(place, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place / "hub"))
    [fault] = of({f"{MODEL}.path": "org/no-such-model"})
    assert "hf download org/no-such-model" in fault.text


def test_a_reference_to_nothing_is_left_to_who_reports_it(place):
    assert of({"data.train_files": "${no.such}"}) == []


def test_a_module_of_an_editable_install_is_found(place, monkeypatch):
    """setuptools gives such a package a finder of its own; its folder is not on the path."""
    source = place / "checkout"
    source.mkdir()
    (source / "__init__.py").write_text("")
    (source / "reward.py").write_text("def score(): ...\n")

    class EditableFinder:
        @classmethod
        def find_spec(cls, name, path=None, target=None):
            if name == "my_rewards":
                return importlib.util.spec_from_file_location(name, source / "__init__.py")
            return None

    path = "pkg://my_rewards.reward"
    assert "no Python module my_rewards in" in of({FUNCTION: path})[0].text
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, EditableFinder])
    assert of({FUNCTION: path, "reward.custom_reward_function.name": "score"}) == []
    assert "it defines no compute_score" in of({FUNCTION: path})[0].text


@pytest.mark.parametrize(("output", "found"), [("values.parquet", []), ("others.parquet", ["spo.initial.values"])])
def test_values_that_the_run_samples_first_need_not_be_there(place, output, found):
    config = OmegaConf.create({"spo": {"initial": {"values": "values.parquet"}, "estimate": {"output": output}}})
    assert [fault.key for fault in faults(config)] == found

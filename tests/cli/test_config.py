"""``spo-verl config``: the same configuration as the run's, where values come from, and every problem at once."""

import json
import os

import pytest
from omegaconf import OmegaConf

from spo_verl.config import known_keys, refuse
from spo_verl.errors import SpoConfigError
from spo_verl.launching.composition import compose, examine, preset_keys, setting_values
from spo_verl.training.checks import COUNTS, check, find
from tests.cli.helpers import run, run_json
from tests.support.verl_config import compose_verl

USUAL = ["+spo=recipe", "spo.forgetting.half_life=0.1", "actor_rollout_ref.rollout.n=4", "hydra.run.dir=/x"]


@pytest.fixture(scope="module")
def usual():
    return compose(USUAL, config_name="ppo_trainer")


def test_it_is_the_configuration_that_main_ppo_composes(usual):
    assert OmegaConf.to_container(usual.config) == OmegaConf.to_container(compose_verl(USUAL))
    assert OmegaConf.is_struct(usual.config)
    assert usual.problems == []


def test_each_value_knows_where_it_comes_from(usual):
    assert usual.preset == "recipe"
    assert usual.source("spo.forgetting.half_life") == "command line"
    assert usual.source("spo.forgetting.reference") == "preset recipe"
    assert usual.source("spo.sampling.epsilon") == "preset recipe"  # from paper, on which recipe builds
    assert usual.source("actor_rollout_ref.actor.clip_ratio_high") == "preset recipe"
    assert usual.source("actor_rollout_ref.rollout.n") == "command line"
    assert usual.source("trainer.total_epochs") == "verl"
    assert setting_values(usual.config)["spo.forgetting.half_life"] == 0.1


def test_without_a_preset_the_defaults_hold_and_the_differences_are_shown():
    data = run_json("config", "algorithm.adv_estimator=spo", "+spo.reward={low: -1}")
    assert list(data["settings"]) == list(known_keys())
    assert data["settings"]["spo.seed"] == {"value": 0, "source": "default"}
    assert data["settings"]["spo.reward.low"] == {"value": -1, "source": "command line"}
    # verl 0.9.1 ships a dual clip of 3, the paper has 10
    clip = {"key": "actor_rollout_ref.actor.clip_ratio_c", "value": 3.0, "paper": 10.0, "source": "verl"}
    assert clip in data["differs_from_paper"]
    assert "+spo=paper" in data["warnings"][0]
    assert "verl's default is not on this machine: data.train_files" in data["warnings"][1]
    assert data["problems"] == []


def test_a_configuration_file_of_ones_own(tmp_path):
    (tmp_path / "mine.yaml").write_text("defaults: [ppo_trainer, spo: bspo, _self_]\nspo: {seed: 5}\n")
    data = run_json("config", "--config-dir", tmp_path, "--config-name", "mine", "spo.sampling.gamma=0.5")
    sources = {key: entry["source"] for key, entry in data["settings"].items()}
    assert data["preset"] == "bspo"
    assert data["settings"]["spo.seed"]["value"] == 5
    assert sources["spo.sampling.gamma"] == "command line"
    assert sources["spo.bspo"] == "preset bspo"


def test_a_file_that_names_the_preset_wins_over_it_and_is_named_as_the_source(tmp_path):
    own = "defaults: [ppo_trainer, spo: plus_plus, _self_]\n"
    own += "actor_rollout_ref: {actor: {clip_ratio_high: 0.3}}\nspo: {forgetting: {half_life: 0.1}}\n"
    (tmp_path / "mine.yaml").write_text(own)
    data = run_json("config", "--config-dir", tmp_path, "--config-name", "mine")
    sources = {key: entry["source"] for key, entry in data["settings"].items()}
    assert sources["spo.forgetting.half_life"] == "configuration file"
    assert sources["spo.forgetting.mode"] == sources["spo.seed"] == "preset plus_plus"
    lines = run("config", "--config-dir", tmp_path, "--config-name", "mine").stdout.splitlines()
    [clip] = [line.split(maxsplit=3) for line in lines if line.startswith("actor_rollout_ref.actor.clip_ratio_high")]
    assert clip[1:] == ["0.3", "0.28", "configuration file"]


def test_what_hydra_refuses_and_what_spo_refuses_come_together():
    overrides = [
        "spo=paper",  # no plus sign
        "+spo.sampling.gama=2",  # unknown, but hydra adds it
        "spo.forgeting.mode=kl",  # unknown, and hydra refuses it
        "data.foo=1",  # a typo in a key of verl
        "a=b=[",  # no override at all
        "critic.enable=True",
        "+spo.seed=-1",
        "data.train_batch_size=${no.such}",
    ]
    result = run("config", *overrides)
    assert result.exit_code == 1
    first, *listed = result.stdout.splitlines()
    assert first == "9 problems:"
    problems = listed[:9]
    assert [problem.split(".")[0].strip() for problem in problems] == [str(number) for number in range(1, 10)]
    assert listed[9].startswith("warning: no preset was composed")  # warnings come with problems too
    assert "spo.sampling.epsilon" not in result.stdout
    assert "spo.sampling.epsilon" in run("config", *overrides, "--all").stdout
    for fragment in (
        "+spo=paper.",
        "did you mean spo.sampling.gamma?",
        "did you mean spo.forgetting.mode?",
        "data.foo=1: Could not override",
        "a=b=[: mismatched input",
        "set critic.enable=null",
        "spo.seed=-1",
        "data.train_batch_size: ${no.such} cannot be resolved",
        "would not use SPO",
    ):
        assert sum(fragment in problem for problem in problems) == 1, fragment


def test_the_problems_are_those_of_the_start_of_a_run():
    overrides = ["+spo=paper", "algorithm.use_kl_in_reward=True", "trainer.use_v1=False", "spo.drift.max_tokens=0"]
    with pytest.raises(SpoConfigError) as refusal:
        check(compose_verl(overrides))
    problems = examine(compose(overrides, config_name="ppo_trainer")).problems
    with pytest.raises(SpoConfigError) as same:
        refuse(problems)
    assert str(same.value) == str(refusal.value)


def test_an_unknown_preset_names_those_that_exist():
    [first, *_] = run_json("config", "+spo=papre")["problems"]
    assert "bspo lean paper" in first
    assert "Config search path" not in first


def test_an_unknown_configuration_is_an_error_with_the_fix():
    result = run("config", "--config-name", "nope")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: the configuration 'nope' does not compose")
    assert "ppo_megatron_trainer" in result.stderr


ROLLOUT = "actor_rollout_ref.rollout"
WHOLE = (
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
    f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=1",
    "trainer.n_gpus_per_node=1",
)


def rollout_warnings(*words):
    """Those of a command line that verl's own check accepts."""
    found = run_json("config", "+spo=paper", "--verl", "--no-files", *WHOLE, *words)
    assert found["problems"] == []
    return [one for one in found["warnings"] if ROLLOUT in one]


def test_a_rollout_that_verls_workers_would_refuse_is_a_warning():
    unnamed, split = rollout_warnings()
    assert unnamed.startswith(f"{ROLLOUT}.name is not set")
    assert split.startswith(
        "1 training process (trainer.nnodes * trainer.n_gpus_per_node) cannot be split into rollout"
    )
    named = f"{ROLLOUT}.name=vllm"
    assert rollout_warnings(named) == [split]
    assert rollout_warnings(named, f"{ROLLOUT}.tensor_model_parallel_size=1") == []
    assert rollout_warnings(named, "trainer.n_gpus_per_node=4") == []
    [four] = rollout_warnings(named, "trainer.nnodes=2", f"{ROLLOUT}.data_parallel_size=2")
    assert f"engines of 4 ({ROLLOUT}: tensor_model_parallel_size=2 * data_parallel_size=2)" in four
    # Processes of their own come on top of those on the training processes, unless these are switched off.
    apart = ("trainer.v1.trainer_mode=separate_async", f"{ROLLOUT}.nnodes=1", f"{ROLLOUT}.n_gpus_per_node=2")
    assert rollout_warnings(named, *apart) == [split]
    assert rollout_warnings(named, *apart, "actor_rollout_ref.hybrid_engine=false") == []


@pytest.mark.parametrize(
    ("odd", "warned"),
    [
        ("data_parallel_size=null", 0),
        ("data_parallel_size=0", 0),
        ("data_parallel_size=${nothing}", 0),
        ("nnodes=???", 1),
    ],
)
def test_sizes_that_are_no_numbers_are_left_to_verl(odd, warned):
    found = run_json("config", "+spo=paper", "--verl", "--no-files", *WHOLE, f"{ROLLOUT}.{odd}")
    assert sum("cannot be split" in one for one in found["warnings"]) == warned


def test_verls_own_check_is_asked_for():
    needed = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"
    [problem] = run_json("config", "+spo=paper", "--verl", "--no-files")["problems"]
    assert problem.startswith("verl's own check: ")
    assert "ppo_micro_batch_size" in problem
    whole = [
        f"{needed}=1",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1",
        "trainer.n_gpus_per_node=1",
    ]
    assert run_json("config", "+spo=paper", "--verl", "--no-files", *whole)["problems"] == []
    defaults = run_json("config", "+spo=paper", "--verl", *whole)["problems"]
    assert [problem.partition("=")[0] for problem in defaults] == [
        "data.train_files",
        "data.val_files",
        "actor_rollout_ref.model.path",
    ]


def test_a_message_has_every_problem_as_it_went_in_with_its_number():
    problems = ["one: correct it.", "two,\nover lines.", "3. looks like a number"]
    with pytest.raises(SpoConfigError) as error:
        refuse(problems)
    lines = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(problems, 1))
    assert str(error.value) == f"3 problems in the configuration of SPO:\n{lines}"


def test_keys_of_a_preset_include_those_of_its_base():
    assert {"spo.bspo", "spo.forgetting.rho", "actor_rollout_ref.rollout.n"} <= preset_keys("bspo")
    assert "spo.no" not in preset_keys("bspo")
    assert preset_keys("nope") == set()


def test_the_table_shows_value_and_source():
    text = run("config", *USUAL).stdout
    assert any(line.split() == ["spo.forgetting.half_life", "0.1", "command", "line"] for line in text.splitlines())
    assert "warning: actor_rollout_ref.rollout.n=4" in text
    assert text.rstrip().endswith("no problems")


def test_relations_are_checked_also_where_another_setting_is_out_of_range():
    overrides = ["+spo=paper", "spo.seed=-1", "spo.forgetting.rho_min=0.99", "spo.drift.max_prompts=a"]
    problems = examine(compose([*overrides, "spo.late.policy=drop"], config_name="ppo_trainer")).problems
    assert [problem.partition("=")[0] for problem in problems] == [
        "spo.seed",
        "spo.drift.max_prompts",
        "spo.forgetting.rho_min",
    ]


def test_what_follows_from_a_refused_setting_is_not_reported():
    # rho_max would be 0.96 by default, below rho_min; nobody has asked for 0.96
    overrides = ["+spo=paper", "spo.forgetting.rho_min=0.99", "spo.forgetting.rho_max=x"]
    [problem] = examine(compose(overrides, config_name="ppo_trainer")).problems
    assert problem.startswith("spo.forgetting.rho_max=")


def test_files_and_rewards_are_among_the_problems(tmp_path):
    data = run_json(
        "config",
        "+spo=paper",
        f"spo.initial.values={tmp_path}/no.parquet",
        f"data.train_files=[{tmp_path}/a.parquet,{tmp_path}/b.parquet]",
        "reward.reward_manager.name=dapo",
        "+reward.reward_kwargs.overlong_buffer_cfg={enable: true, len: 8, penalty_factor: 0.5}",
        "distillation.enabled=true",
        "distillation.distillation_loss.use_task_rewards=false",
    )
    for fragment in ("no.parquet", "a.parquet", "b.parquet", "spo.reward.low=-0.5", "use_task_rewards=True"):
        assert sum(fragment in problem for problem in data["problems"]) == 1, fragment


@pytest.mark.parametrize(
    "flag", ["--multirun", "-m", "--cfg=job", "-c=job", "--info", "--hydra-help", "-sc", "--resolve", "-p=x"]
)
def test_flags_of_hydra_that_start_no_run_are_refused_with_the_reason(flag):
    result = run("config", "+spo=paper", *flag.split("="))
    assert result.exit_code == 2
    assert "is an option of main_ppo that" in " ".join(result.stderr.split())


def test_a_number_that_is_none_is_a_problem_and_the_others_are_found_too():
    overrides = ["+spo=paper", "actor_rollout_ref.rollout.n=abc", "data.train_batch_size=[1]", "critic.enable=True"]
    problems = examine(compose(overrides, config_name="ppo_trainer")).problems
    assert problems[:2] == [
        "actor_rollout_ref.rollout.n=abc: it has to be a whole number, such as 1.",
        "data.train_batch_size=[1]: it has to be a whole number, such as 1024.",
    ]
    assert "critic.enable=null" in problems[2]
    fine = ["data.train_files=[a,b]", "trainer.logger=console", "trainer.v1.colocate_async.num_warmup_batches=1.5"]
    assert examine(compose(["+spo=paper", *fine], config_name="ppo_trainer")).problems == []


def test_sizes_that_are_no_counts_end_in_no_traceback():
    config = compose(["+spo=paper", "spo.forgetting.mode=drift"], config_name="ppo_trainer").config
    sizes = {
        "data.train_batch_size": 8,
        "actor_rollout_ref.rollout.n": 4,
        "actor_rollout_ref.actor.ppo_mini_batch_size": 8,
        "actor_rollout_ref.actor.ppo_epochs": 1,
        "trainer.v1.separate_async.parameter_sync_step": 1,
    }
    for mode in ("sync", "separate_async"):
        for key, value in {"trainer.v1.trainer_mode": mode, **sizes}.items():
            OmegaConf.update(config, key, value, merge=False)
        _, problems, warnings = find(config)
        assert any("mini-batches after the first, and this run has 1 per update" in problem for problem in problems)
        assert any("a step has 8 x 4 = 32 trajectories" in warning for warning in warnings)
        for key, value in sizes.items():
            for wrong in (None, "abc", [1], 0, -1, 1.5):
                OmegaConf.update(config, key, wrong, merge=False)
                find(config)
            OmegaConf.update(config, key, value, merge=False)


@pytest.mark.parametrize("value", ["0", "-1", "1e999", "nan", "1.5", "true", "null", None])
def test_a_size_below_one_is_a_problem_that_names_its_key(value):
    """``None``: the key is removed."""
    found = examine(
        compose(["+spo=paper", *(f"~{key}" if value is None else f"{key}={value}" for key in COUNTS)],
                config_name="ppo_trainer")
    )  # fmt: skip
    beginnings = [f"{key} is not set: set {key}" if value in (None, "null") else f"{key}=" for key in COUNTS]
    assert len(found.problems) == len(COUNTS)
    for problem, beginning in zip(found.problems, beginnings, strict=True):
        assert problem.startswith(beginning)
        assert "whole number of at least 1" in problem


UNRESOLVABLE = (
    "actor_rollout_ref.rollout.n=${actor_rollout_ref.rollout.n}",
    "data.train_batch_size=${data.val_batch_size}",
    "data.val_batch_size=${data.train_batch_size}",
    "algorithm.adv_estimator=${no.such}",
    "data.train_files=[a.parquet,'${no.such}']",
    "actor_rollout_ref.model.path=${oc.env:NOT_SET_ANYWHERE}",
    "trainer.nnodes=${no_such_resolver:1}",
    "spo.seed=${no.such}",
    "spo.initial.values=x${no.such}",
    "spo.sampling.quota={b: 1, a: '${no.such}'}",
)


@pytest.mark.parametrize("overrides", [UNRESOLVABLE, UNRESOLVABLE[:1]])
def test_what_cannot_be_resolved_is_a_problem_of_its_key(overrides):
    for options in ((), ("--no-files", "--all")):
        done = run("config", "+spo=paper", *overrides, *options, "--json")
        assert done.exit_code == 1
        problems = json.loads(done.stdout)["problems"]
        for override in overrides:
            key = override.partition("=")[0]
            [problem] = [one for one in problems if one.startswith((f"{key}: ", f"{key}.a: "))]
            assert "cannot be resolved" in problem


def test_a_size_is_reported_once_and_one_is_enough():
    ones = [f"{key}={value}" for key, value in zip(COUNTS, [1, 1, 1, 1, 1, 1, 1, 1.0], strict=True)]
    assert examine(compose(["+spo=paper", *ones], config_name="ppo_trainer")).problems == []
    [problem] = examine(compose(["+spo=paper", "trainer.nnodes=abc"], config_name="ppo_trainer")).problems
    assert problem.startswith("trainer.nnodes=abc: it has to be a whole number, such as")
    [problem] = run_json("config", "--no-files", "+spo=paper", "data.train_batch_size=-1")["problems"]
    assert problem.startswith("data.train_batch_size=-1: ")


def test_a_warning_that_needs_a_refused_size_waits_for_it():
    wrong = compose(
        ["+spo=paper", "actor_rollout_ref.rollout.n=8", "data.train_batch_size=abc"], config_name="ppo_trainer"
    )
    assert examine(wrong).problems == ["data.train_batch_size=abc: it has to be a whole number, such as 1024."]


def test_a_word_that_is_no_override_is_named():
    [problem] = compose(["run_grpo.sh"], config_name="ppo_trainer").problems
    assert problem.startswith("run_grpo.sh: an override is key=value")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+spo=papre"], "+spo=papre: there is no such preset. Did you mean paper? Available: bspo lean paper"),
        (["+spo=xyzzy"], "+spo=xyzzy: there is no such preset. Available: bspo lean paper"),
        (["+spo=paper", "+spo=lean"], "+spo=lean: a run has one preset, and another one was given before"),
    ],
)
def test_a_preset_that_does_not_exist_or_is_the_second_one(overrides, words):
    assert compose(overrides, config_name="ppo_trainer").problems[0].startswith(words)


def test_a_misspelt_key_of_verl_gets_a_suggestion():
    [problem] = compose(["data.train_batchsize=4"], config_name="ppo_trainer").problems
    assert "did you mean data.train_batch_size?" in problem


def test_nothing_is_cut_in_a_narrow_terminal(monkeypatch):
    overrides = ["config", "algorithm.adv_estimator=spo", "data.foo=1", "--all", "critic.enable=True"]
    wide = run_json(*overrides)
    monkeypatch.setenv("COLUMNS", "60")
    narrow = run(*overrides).stdout
    shown = " ".join(narrow.split())
    for sentence in (*wide["problems"], *wide["warnings"]):
        assert " ".join(sentence.split()) in shown
    assert set(wide["settings"]) <= set(shown.split())
    assert {entry["key"] for entry in wide["differs_from_paper"]} <= set(shown.split())
    assert all(len(line) <= 60 or " " not in line.strip() for line in narrow.splitlines())


@pytest.mark.parametrize(
    "before",
    [
        ["python3", "-m", "verl.trainer.main_ppo"],
        pytest.param(["VERL_PLATFORM=cpu", "python", "-u", "-m", "verl.trainer.main_ppo"], marks=pytest.mark.long),
        pytest.param(["env", "A=b c", "/opt/bin/python3.11", "verl/trainer/main_ppo.py"], marks=pytest.mark.long),
        ["CUDA_VISIBLE_DEVICES=0", "nohup", "srun", "-n", "1", "python3", "-X", "dev", "-m", "verl.trainer.main_ppo"],
    ],
)
def test_the_whole_line_of_a_run_is_taken_as_what_follows_main_ppo(before, tmp_path):
    (tmp_path / "mine.yaml").write_text("defaults: [ppo_trainer, spo: paper, _self_]\nspo: {seed: 5}\n")
    options = ["--config-dir", str(tmp_path), "--config-name=mine"]
    overrides = ["data.train_batch_size=64", "trainer.experiment_name='a main_ppo b'"]
    wanted = run_json("config", "--no-files", *options, *overrides)
    assert wanted["settings"]["spo.seed"]["value"] == 5
    assert run_json("config", *before, *options, *overrides, "--no-files") == wanted
    text = " ".join([*before, *options, *overrides]).replace("A=b c", "A='b c'").replace(" -m ", " \\\n  -m ")
    assert run_json("config", "--no-files", text) == wanted


def test_the_variables_before_a_command_hold_for_its_check_alone(monkeypatch):
    monkeypatch.setenv("VERL_PLATFORM", "cuda")
    monkeypatch.delenv("A", raising=False)
    line = ("python", "-m", "verl.trainer.main_ppo", "+spo=paper", "+platform=cpu", "--no-files")
    [problem] = run_json("config", *line)["problems"]
    assert "platform" in problem
    assert run_json("config", "A=1", "VERL_PLATFORM=cpu", *line)["problems"] == []
    assert (os.environ["VERL_PLATFORM"], os.environ.get("A")) == ("cuda", None)


def test_a_whole_line_with_an_open_quote_is_refused():
    refused = run("config", "python -m verl.trainer.main_ppo 'a=1")
    assert (refused.exit_code, "close its quotes" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("own", "named"),
    [
        ("{trainer: abc, data: 3, reward: true}", "trainer data reward"),
        (
            "{trainer: {v1: 3, nnodes: abc}, data: {train_batch_size: x, train_files: 3, val_files: {a: 1}}, "
            "critic: x}",
            "trainer.v1 trainer.nnodes data.train_batch_size data.train_files data.val_files critic",
        ),
        (
            "{actor_rollout_ref: {rollout: {n: abc, agent: 7}, actor: {policy_loss: x, ppo_epochs: y}, model: 3}, "
            "distillation: {enabled: true, teacher_models: 3}}",
            "actor_rollout_ref.rollout.n actor_rollout_ref.rollout.agent actor_rollout_ref.actor.policy_loss "
            "actor_rollout_ref.actor.ppo_epochs actor_rollout_ref.model",
        ),
        ("{spo: text, algorithm: {adv_estimator: spo}}", "spo"),
        (
            "{spo: {forgetting: 3, sampling: [1], seed: {a: 1}}, algorithm: {adv_estimator: spo}}",
            "spo.forgetting spo.sampling spo.seed",
        ),
        ("{data: [1]}", ""),  # hydra itself does not put a list in the place of a section
    ],
)
def test_a_wrong_type_in_a_configuration_of_ones_own_is_a_problem_that_names_its_key(own, named, tmp_path):
    content = OmegaConf.to_yaml(OmegaConf.create(own))
    (tmp_path / "mine.yaml").write_text(f"defaults: [ppo_trainer, _self_]\n{content}")
    found = run_json("config", "--config-dir", tmp_path, "--config-name", "mine", "--all")
    problems = [found["error"]["message"]] if "error" in found else found["problems"]
    assert "error" not in found or not named
    for key in named.split():
        assert any(problem.startswith((f"{key}=", f"{key}:")) for problem in problems), (key, problems)
    assert run("config", "--config-dir", tmp_path, "--config-name", "mine", "--all").exit_code == (1 if named else 2)

"""Settings: presets compose into verl's stock configuration, every key can be set, all problems in one message."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf, open_dict
from verl.trainer.config.algorithm import RolloutCorrectionConfig
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights
from verl.utils.config import omega_conf_to_dataclass

from spo_verl import config as config_of_spo
from spo_verl.conf import PRESETS, groups
from spo_verl.config import SpoConfig, known_keys, parse, refuse
from spo_verl.errors import SpoConfigError
from spo_verl.tracker.settings import TrackerSettings
from spo_verl.training.checks import aborts, check, contradictions, differences_to_paper, paper_keys, unusual
from tests.support.verl_config import compose_verl

STOCK = ["algorithm.adv_estimator=spo"]

# One legal value, different from the default, for every setting.
OTHER_VALUES = {
    "spo.preset": "mine",
    "spo.seed": 7,
    "spo.bspo": True,
    "spo.rollout_n": "spo_verl.training.rollout_n:more_where_uncertain",
    "spo.oversample": 0.5,
    "spo.record": 2.5,
    "spo.samples_every": 25,
    "spo.reward.key": "acc",
    "spo.reward.low": -1.0,
    "spo.reward.high": 2.0,
    "spo.initial.values": "values.parquet",
    "spo.initial.prior": "none",
    "spo.initial.tracker": "there/spo",
    "spo.value.readout": "calibrated",
    "spo.value.window": 512,
    "spo.value.features": ["extra_info.level", "my_project.difficulty:digits"],
    "spo.sampling.mode": "uniform",
    "spo.sampling.gamma": 0.5,
    "spo.sampling.epsilon": 0.1,
    "spo.sampling.quota": {"openai/gsm8k": 0.75, "code.v2": 0.25},
    "spo.sampling.max_in_flight": 3,
    "spo.forgetting.mode": "constant",
    "spo.forgetting.reference": "updated",
    "spo.forgetting.half_life": 0.14,
    "spo.forgetting.rho_min": 0.5,
    "spo.forgetting.rho_max": 0.99,
    "spo.forgetting.rho": 0.9,
    "spo.forgetting.floor": 1.0,
    "spo.forgetting.drift_scale": 2.5,
    "spo.drift.tokens": "all",
    "spo.drift.max_tokens": 128,
    "spo.drift.measure_both": True,
    "spo.drift.max_prompts": 512,
    "spo.advantage.baseline": "none",
    "spo.advantage.measure": "token",
    "spo.advantage.eps": 1e-6,
    "spo.late.policy": "drop",
    "spo.late.length_bound": 0.25,
    "spo.estimate.output": "values.parquet",
    "spo.estimate.trials": 4,
    "spo.estimate.chunk": 64,
}

# What a setting needs beside it, as it would otherwise have no effect, which is refused.
PARTNERS = {
    "spo.rollout_n": "spo.bspo=True",
    "spo.value.window": "spo.value.readout=calibrated",
    "spo.value.features": "spo.value.readout=calibrated",
    "spo.forgetting.floor": "spo.forgetting.mode=version",
    "spo.forgetting.drift_scale": "spo.forgetting.mode=drift",
}


def spelled(value: object) -> object:
    """A value as it stands on hydra's command line, whose braces take names without quotation marks."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {part}" for name, part in value.items()) + "}"
    return value


def read(config: object, dotted: str) -> object:
    for part in dotted.removeprefix("spo.").split("."):
        config = getattr(config, part)
    return config


def test_the_list_of_other_values_is_complete():
    assert list(OTHER_VALUES) == list(known_keys())


@pytest.mark.parametrize(("preset", "plus"), [([], "+"), (["+spo=paper"], "")])
def test_every_key_can_be_set_on_the_command_line(preset, plus):
    """All on one command line: hydra takes most of a second for each."""
    values = [f"{plus}{key}={spelled(value)}" for key, value in OTHER_VALUES.items()]
    settings, _ = parse(OmegaConf.to_container(compose_verl([*STOCK, *preset, *values]).spo))
    assert {key: read(settings, key) for key in OTHER_VALUES} == OTHER_VALUES


@pytest.mark.parametrize(("given", "limit"), [("off", 0), (False, 0), (None, 0), (0, 0), ("0.5", 0.5), (True, 1)])
def test_the_record_is_switched_off_in_one_word(given, limit):
    settings, problems = parse({"record": given})
    assert (settings.record, problems) == (limit, [])


@pytest.mark.parametrize("key", OTHER_VALUES)
def test_every_key_alone_differs_from_the_default_and_is_no_problem(key):
    config = OmegaConf.from_dotlist([PARTNERS[key]] if key in PARTNERS else [])
    OmegaConf.update(config, key, OTHER_VALUES[key])
    settings, problems = parse(OmegaConf.to_container(config.spo))
    assert read(settings, key) == OTHER_VALUES[key] != read(SpoConfig(), key)
    assert problems == []


@pytest.mark.parametrize("preset", [["+spo=paper"], STOCK])
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["+spo.sampling.quota={math: 3, code: 1}"], {"math": 3.0, "code": 1.0}),
        (["+spo.sampling.quota.math=3", "+spo.sampling.quota.code=1"], {"math": 3.0, "code": 1.0}),
        (["+spo.sampling.quota={openai/gsm8k: 0.5, code.v2: 0.5}"], {"openai/gsm8k": 0.5, "code.v2": 0.5}),
        (["+spo.sampling.quota={hard math: 1, a\\:b: 2}"], {"hard math": 1.0, "a:b": 2.0}),
    ],
)
def test_spellings_of_quotas(preset, overrides, expected):
    config = compose_verl([*preset, *overrides])
    settings, problems = parse(OmegaConf.to_container(config.spo))
    assert problems == []
    assert settings.sampling.quota == expected
    assert check(config) == settings


def test_the_preset_paper_spells_out_every_default():
    preset = OmegaConf.to_container(OmegaConf.load(PRESETS / "paper.yaml"))
    settings, problems = parse(preset["spo"])
    assert problems == []
    assert {key: read(settings, key) for key in known_keys()} == {
        key: read(SpoConfig(preset="paper"), key) for key in known_keys()
    }
    written = OmegaConf.create(preset)
    for key in known_keys():
        assert OmegaConf.select(written, key, default="missing") != "missing", f"{key} is not in paper.yaml"


@pytest.mark.parametrize("name", [name for group, name, _ in groups() if group == "spo"])
@pytest.mark.parametrize("engine", ["dp", "megatron"])
def test_every_preset_composes_for_fsdp_and_megatron(name, engine):
    preset = name.removesuffix(".yaml")
    config = compose_verl([f"+spo={preset}", f"model_engine={engine}"])
    assert config.algorithm.adv_estimator == "spo"
    assert config.spo.preset == preset
    assert config.actor_rollout_ref.actor.clip_ratio_high == 0.28
    assert config.actor_rollout_ref.actor.clip_ratio_low == 0.2
    assert config.actor_rollout_ref.actor.clip_ratio_c == (2.0 if preset == "plus_plus" else 10.0)
    assert config.actor_rollout_ref.actor.use_kl_loss is False
    assert check(config).preset == preset


@pytest.mark.parametrize("engine", ["dp", "megatron"])
def test_plus_plus_is_event_time_token_measure_and_truncated_weights(engine):
    config = compose_verl(["+spo=plus_plus", f"model_engine={engine}"])
    settings = check(config)
    assert (settings.forgetting.mode, settings.forgetting.rho, settings.forgetting.floor) == ("version", 0.875, 0.0)
    assert settings.advantage.measure == "token"
    # A batch is the first to finish of its policy version; in a synchronous run that is every batch.
    assert settings.late.policy == "abort"
    assert not aborts(config, settings)
    assert not [remark for remark in unusual(config, settings) if "late" in remark]
    for mode in ("colocate_async", "separate_async"):
        asynchronous = compose_verl(["+spo=plus_plus", f"model_engine={engine}", f"trainer.v1.trainer_mode={mode}"])
        assert aborts(asynchronous, check(asynchronous))
    assert settings.references == ()  # no stored responses, and no forward over them
    assert TrackerSettings.of(settings).forgetting_mode == "version"
    correction = omega_conf_to_dataclass(config.algorithm.rollout_correction, RolloutCorrectionConfig)
    assert correction == RolloutCorrectionConfig.decoupled_token_is(2.0)
    assert config.actor_rollout_ref.rollout.calculate_log_probs is True
    stock = compose_verl([f"model_engine={engine}"])
    assert config.actor_rollout_ref.actor.optim == stock.actor_rollout_ref.actor.optim
    weights, _ = compute_rollout_correction_weights(
        torch.log(torch.tensor([[0.25, 1.5, 2.5, 9.0]])),
        torch.ones(1, 4),
        rollout_is=config.algorithm.rollout_correction.rollout_is,
        rollout_is_threshold=config.algorithm.rollout_correction.rollout_is_threshold,
    )
    torch.testing.assert_close(weights, torch.tensor([[0.25, 1.5, 2.0, 2.0]]))


def test_the_tracker_gets_what_it_works_by():
    config = check(
        compose_verl(
            ["+spo=plus_plus", "spo.forgetting.floor=0.5", "spo.forgetting.rho=0.9", "spo.sampling.max_in_flight=null"]
        )
    )
    settings = TrackerSettings.of(config)
    assert (settings.floor, settings.rho, settings.max_in_flight) == (0.5, 0.9, None)
    config = check(compose_verl(["+spo=paper", "spo.forgetting.mode=drift", "spo.forgetting.drift_scale=3"]))
    settings = TrackerSettings.of(config)
    assert (settings.forgetting_mode, settings.drift_scale, settings.references) == ("drift", 3.0, ())


def test_presets_differ_where_they_say():
    paper, recipe = (compose_verl([f"+spo={name}"]).spo for name in ("paper", "recipe"))
    assert (paper.forgetting.reference, paper.drift.tokens) == ("acting", "generated")
    assert (recipe.forgetting.reference, recipe.drift.tokens) == ("updated", "all")
    bspo = compose_verl(["+spo=bspo"])
    assert bspo.spo.bspo is True
    assert bspo.actor_rollout_ref.rollout.n == 4


def test_without_a_preset_the_paper_defaults_hold_and_a_warning_names_verl_keys(caplog):
    config = compose_verl([*STOCK, "actor_rollout_ref.rollout.n=1"])
    with caplog.at_level("WARNING", logger="spo_verl"):
        settings = check(config)
    assert settings == SpoConfig()
    [warning] = [record.getMessage() for record in caplog.records]
    differing = {key for key, _, _ in differences_to_paper(config)}
    # verl 0.9.1 ships clip 0.2/0.2 and clip_c 3; the other keys of the preset are the paper's already
    assert {"actor_rollout_ref.actor.clip_ratio_high", "actor_rollout_ref.actor.clip_ratio_c"} <= differing
    assert all(key in warning for key in differing)
    assert "+spo=paper" in warning


def test_with_the_preset_nothing_differs_and_nothing_is_warned(caplog):
    config = compose_verl(["+spo=paper"])
    with caplog.at_level("WARNING", logger="spo_verl"):
        check(config)
    assert list(differences_to_paper(config)) == []
    assert caplog.records == []
    assert "actor_rollout_ref.rollout.n" in paper_keys()


def test_several_rollouts_without_bspo_are_a_warning(caplog):
    with caplog.at_level("WARNING", logger="spo_verl"):
        check(compose_verl(["+spo=paper", "actor_rollout_ref.rollout.n=4"]))
    assert "spo.bspo=True" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING", logger="spo_verl"):
        check(compose_verl(["+spo=bspo", "actor_rollout_ref.rollout.n=4"]))
    assert caplog.text == ""


@settings(deadline=None)
@given(
    repeats=st.integers(2, 64),
    prompts=st.integers(1, 4096),
    mini=st.integers(1, 4096),
    steps=st.sampled_from([None, 9]),
)
def test_the_warning_of_several_rollouts_does_the_arithmetic(repeats, prompts, mini, steps):
    config = OmegaConf.create(
        {
            "data": {"train_batch_size": prompts},
            "actor_rollout_ref": {"rollout": {"n": repeats}, "actor": {"ppo_mini_batch_size": mini}},
            "trainer": {"total_training_steps": steps},
        }
    )
    [warning] = [one for one in unusual(config, SpoConfig(preset="paper")) if "rollout.n" in one]
    assert f"a step has {prompts} x {repeats} = {prompts * repeats} trajectories" in warning
    assert f"data.train_batch_size={prompts * repeats} " in warning
    assert f"ppo_mini_batch_size={mini * repeats} " in warning
    assert ("trainer.total_training_steps" in warning) == (steps is None)
    config.actor_rollout_ref.rollout.n = 1
    config.data.train_batch_size = prompts * repeats
    assert [one for one in unusual(config, SpoConfig(preset="paper")) if "rollout.n" in one] == []


CONTRADICTIONS = {
    "trainer.use_v1=False": "trainer.use_v1=True",
    "algorithm.use_kl_in_reward=True": "algorithm.use_kl_in_reward=False",
    "critic.enable=True": "critic.enable=null",
    "algorithm.filter_groups.enable=True": "algorithm.filter_groups.enable=False",
    "skip.rollout_tq.enable=True": "skip.rollout_tq.enable=False",
    "algorithm.rollout_correction.bypass_mode=True": "bypass_mode=False",
}


@pytest.mark.parametrize("override", CONTRADICTIONS)
def test_each_contradiction_is_refused_with_its_fix(override):
    with pytest.raises(SpoConfigError) as refusal:
        check(compose_verl(["+spo=paper", override]))
    assert override.split("=")[0].rsplit(".", 1)[-1] in str(refusal.value)
    assert CONTRADICTIONS[override] in str(refusal.value)
    assert "1 problem " in str(refusal.value)


def test_all_problems_come_in_one_message():
    overrides = list(CONTRADICTIONS)
    with pytest.raises(SpoConfigError) as refusal:
        check(compose_verl(["+spo=paper", *overrides, "spo.seed=-1", "+spo.sampling.gama=0.1"]))
    message = str(refusal.value)
    assert f"{len(overrides) + 2} problems" in message
    assert "spo.seed=-1" in message
    assert "did you mean spo.sampling.gamma?" in message


def test_the_platform_group_without_its_environment_variable_is_explained():
    config = compose_verl(["+spo=paper"])
    assert list(contradictions(config, SpoConfig())) == []
    with open_dict(config):
        config.platform = "cpu"  # what hydra makes of +platform=cpu where there is no such group
    with pytest.raises(SpoConfigError, match="export VERL_PLATFORM=cpu"):
        check(config)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
def test_parts_of_sequences_without_flash_attention_are_refused(attention):
    size = "actor_rollout_ref.actor.ulysses_sequence_parallel_size"
    chosen = f"+actor_rollout_ref.model.override_config.attn_implementation={attention}"
    with pytest.raises(SpoConfigError, match="attend to its own part alone"):
        check(compose_verl(["+spo=paper", f"{size}=2", chosen]))
    check(compose_verl(["+spo=paper", f"{size}=1", chosen]))
    check(compose_verl(["+spo=paper", f"{size}=2"]))  # verl's own attention
    check(compose_verl(["+spo=paper", f"{size}=2", chosen.replace(attention, "flash_attention_3")]))


def test_bypass_mode_goes_with_references_that_the_training_engine_computes():
    for setting in ("spo.forgetting.reference=updated", "spo.forgetting.mode=constant"):
        config = compose_verl(["+spo=paper", "algorithm.rollout_correction.bypass_mode=True", setting])
        assert list(contradictions(config, check(config))) == []
    with pytest.raises(SpoConfigError, match="rollout engine"):
        check(
            compose_verl(
                [
                    "+spo=recipe",
                    "algorithm.rollout_correction.bypass_mode=True",
                    "spo.drift.measure_both=True",  # brings the acting reference back
                ]
            )
        )


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"reward": {"low": 1.0, "high": 1.0}}, "low=-1 high=1 for math_dapo"),
        ({"forgetting": {"rho_min": 0.97}}, "rho_min=0.97 is above"),
        ({"forgetting": {"mode": "constant"}, "drift": {"measure_both": True}}, "needs stored responses"),
        ({"forgetting": {"half_life": 0}}, "spo.forgetting.half_life=0"),
        ({"forgetting": {"floor": 1.0}}, "spo.forgetting.mode=kl it would do nothing: set it to 0"),
        ({"forgetting": {"floor": -1.0, "mode": "version"}}, "spo.forgetting.floor=-1.0"),
        ({"forgetting": {"drift_scale": 2.0, "mode": "version"}}, "or spo.forgetting.mode=drift"),
        ({"forgetting": {"drift_scale": 0, "mode": "drift"}}, "spo.forgetting.drift_scale=0"),
        ({"drift": {"max_prompts": 9}, "forgetting": {"mode": "drift"}}, "bounds the forward over stored responses"),
        ({"drift": {"max_prompts": 0}}, "spo.drift.max_prompts=0"),
        ({"sampling": {"max_in_flight": 0}}, "spo.sampling.max_in_flight=0"),
        ({"value": {"readout": "Calibrated"}}, "'raw' or 'calibrated'; set spo.value.readout accordingly"),
        ({"value": {"readout": None}}, "spo.value.readout=None"),
        ({"value": {"readout": "calibrated", "window": 0}}, "spo.value.window=0"),
        ({"value": {"readout": "calibrated", "window": 1.5}}, "spo.value.window=1.5"),
        ({"value": {"readout": "calibrated", "window": 10**7}}, "spo.value.window=10000000"),
        ({"value": {"window": 512}}, "it would do nothing: set it to 2048, or spo.value.readout=calibrated"),
        (
            {"value": {"features": ["level"]}},
            "they would do nothing: set them to null, or spo.value.readout=calibrated",
        ),
        ({"value": {"features": ["b", "a", "b"], "readout": "calibrated"}}, "spo.value.features has b more than once"),
        ({"value": {"features": "level", "readout": "calibrated"}}, "spo.value.features"),
        ({"value": {"features": [1.5], "readout": "calibrated"}}, "spo.value.features"),
        ({"value": {"feature": "f"}}, "spo.value.feature: there is no such setting"),
        (
            {"value": {"readout": "calibrated"}, "sampling": {"mode": "uniform"}, "advantage": {"baseline": "none"}},
            "neither spo.advantage.baseline=none nor spo.sampling.mode=uniform reads, so it would do nothing",
        ),
        ({"oversample": -0.1}, "spo.oversample=-0.1"),
        ({"late": {"policy": "wait"}}, "'carry', 'abort' or 'drop'"),
        ({"late": {"length_bound": 0}}, "spo.late.length_bound=0"),
        ({"late": {"length_bound": 1.5}}, "spo.late.length_bound=1.5"),
        ({"advantage": {"eps": float("nan")}}, "spo.advantage.eps"),
        ({"advantage": {"baseline": "initial"}}, "set spo.initial.values to a file of offline values"),
        ({"advantage": {"baseline": "critic"}}, "'value', 'initial' or 'none'"),
        ({"drift": {"max_tokens": 0}}, "spo.drift.max_tokens"),
        ({"sampling": {"mode": "sorted"}}, "'prioritized' or 'uniform'"),
        ({"sampling": {"quota": {"math": 0.0}}}, "spo.sampling.quota of 'math': 0.0: "),
        ({"sampling": {"quota": {"math": -1}}}, "finite number > 0"),
        ({"sampling": {"quota": {"math": float("inf")}}}, "spo.sampling.quota of 'math': inf: "),
        ({"sampling": {"quota": {"math": "much"}}}, "spo.sampling.quota of 'math': 'much': "),
        ({"sampling": {"quota": {"code": {"v2": 0.5}}}}, "in braces, where names may hold dots and slashes"),
        ({"sampling": {"quota": {7: 0.5}}}, "spo.sampling.quota of 7: "),
        ({"sampling": {"quota": [0.5, 0.5]}}, "spo.sampling.quota: [0.5, 0.5]: "),
        ({"sampling": {"quota": {}}}, "names no data source"),
    ],
)
def test_settings_out_of_range_name_key_and_reason(section, expected):
    problems = parse(section)[1]
    with pytest.raises(SpoConfigError) as refusal:
        refuse(problems)
    assert expected in str(refusal.value)


def test_each_faulty_part_of_a_quota_is_a_problem_and_nothing_else_is():
    """Names of data sources may hold dots; the other settings are still compared with each other."""
    section = {"sampling": {"quota": {"code.v2": -1, "a.b.c": 0}}, "forgetting": {"rho_min": 0.9, "rho_max": 0.8}}
    settings, problems, refused = config_of_spo.read(section)
    assert [problem.split(":")[0] for problem in problems] == [
        "spo.sampling.quota of 'code.v2'",
        "spo.sampling.quota of 'a.b.c'",
        "spo.forgetting.rho_min=0.9 is above spo.forgetting.rho_max=0.8; swap or narrow them.",
    ]
    assert (settings.sampling.quota, refused) == (None, {"spo.sampling.quota"})


def test_a_preset_without_the_plus_sign_is_explained():
    config = OmegaConf.create({"spo": "paper", "algorithm": {"adv_estimator": "spo"}})
    with pytest.raises(SpoConfigError, match=r"\+spo=paper"):
        check(config)

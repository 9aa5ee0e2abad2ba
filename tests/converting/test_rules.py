"""What becomes of each key: the arithmetic, each estimator, what is dropped; held against verl's configuration."""

import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import AdvantageEstimator

from spo_verl.converting.rules import (
    CONVERTED,
    KEPT,
    PAPER,
    PRESET_CLIPS,
    REFUSED,
    UNWANTED,
    VERL_DEFAULTS,
    RunValues,
    decide,
)
from spo_verl.errors import SpoConfigError
from spo_verl.training.checks import paper_keys
from tests.support.verl_config import compose_verl

N, BATCH, MINI = "actor_rollout_ref.rollout.n", "data.train_batch_size", "actor_rollout_ref.actor.ppo_mini_batch_size"
STEPS, EPOCHS = "trainer.total_training_steps", "trainer.total_epochs"


@pytest.fixture(scope="module")
def stock():
    return compose_verl()


def decided(plan):
    return {change.key: (change.action, change.after) for change in plan.changes}


def grpo(**more):
    return {"algorithm.adv_estimator": "grpo", **more}


def test_rows_that_a_filter_may_drop_are_named():
    filtered = grpo(**{N: "4", BATCH: "8", MINI: "8", EPOCHS: "1", "data.filter_overlong_prompts": "True"})
    [need] = [one for one in decide(RunValues(filtered), rows=800).needs if "filter_overlong_prompts" in one]
    assert "trainer.total_training_steps=100 is right if 800 rows are left" in need
    for run, rows in ((filtered, None), (grpo(**{N: "4", BATCH: "8", MINI: "8"}), 800)):
        assert not any("filter_overlong_prompts" in one for one in decide(RunValues(run), rows=rows).needs)


def test_the_defaults_are_verls(stock):
    for key, text in VERL_DEFAULTS.items():
        value = OmegaConf.select(stock, key)
        assert ("null" if value is None else str(value)) == text, key


def test_the_papers_values_are_the_presets():
    paper = paper_keys()
    for key, text in PAPER.items():
        if not key.endswith("loss_mode"):
            assert str(paper[key]).lower() == text.lower(), key
    assert set(PRESET_CLIPS) <= set(KEPT) == set(PAPER)


def test_every_key_of_a_rule_exists_in_verl(stock):
    for key in [*KEPT, *(one.key for one in UNWANTED)]:
        assert OmegaConf.select(stock, key, default="missing") != "missing", key


def test_every_estimator_of_verl_has_its_rule():
    assert set(CONVERTED) | set(REFUSED) == {one.value for one in AdvantageEstimator}
    assert not set(CONVERTED) & set(REFUSED)


@settings(deadline=None)
@given(repeats=st.integers(2, 64), batch=st.integers(1, 4096), mini=st.integers(1, 4096))
def test_trajectories_and_updates_stay(repeats, batch, mini):
    run = RunValues(grpo(**{N: str(repeats), BATCH: str(batch), MINI: f"'{mini}'", STEPS: "7"}))
    plan = decide(run)
    after = decided(plan)
    assert after[N] == ("set", "1")
    assert int(after[BATCH][1]) * 1 == batch * repeats
    # verl's mini-batch is ppo_mini_batch_size * rollout.n trajectories
    assert int(after[MINI][1]) * 1 == mini * repeats
    assert after[STEPS] == ("keep", "7")
    assert EPOCHS not in after
    # the last mini-batch is filled up
    updates = len(range(0, batch * repeats, mini * repeats))
    [reason] = [change.reason for change in plan.changes if change.key == MINI]
    assert f"so {updates} {'update' if updates == 1 else 'updates'} per step, as before" in reason


@settings(deadline=None)
@given(repeats=st.integers(2, 16), batch=st.integers(1, 64), epochs=st.integers(1, 30), rows=st.integers(1024, 20000))
def test_the_number_of_steps_stays(repeats, batch, epochs, rows):
    given_ = grpo(**{N: str(repeats), BATCH: str(batch), EPOCHS: str(epochs)})
    assert decided(decide(RunValues(given_), rows=rows))[STEPS] == ("add", str(rows // batch * epochs))
    action, after = decided(decide(RunValues(given_)))[EPOCHS]
    assert action == "scale"
    # verl counts rows // batch steps per epoch; without the rows the epochs come as near as whole numbers do
    lost = rows // batch * epochs - rows // (batch * repeats) * int(after)
    assert 0 <= lost < epochs * repeats


@pytest.mark.parametrize("estimator", sorted(CONVERTED))
def test_an_estimator_with_groups_or_without_is_converted(estimator):
    after = decided(decide(RunValues({"algorithm.adv_estimator": estimator, N: "4"})))
    assert after["algorithm.adv_estimator"] == ("set", "spo")
    assert after["spo"] == ("add", "paper")
    assert after[BATCH] == ("add", "4096")
    single = decided(decide(RunValues({"algorithm.adv_estimator": estimator})))
    assert single[BATCH] == ("keep", "1024")
    assert N not in single
    assert EPOCHS not in single


@pytest.mark.parametrize("estimator", [*REFUSED, "one_of_their_own"])
def test_what_has_no_spo_run_is_refused_with_the_reason(estimator):
    with pytest.raises(SpoConfigError, match=estimator):
        decide(RunValues({"algorithm.adv_estimator": estimator}))


def test_without_an_estimator_it_is_verls_default():
    after = decided(decide(RunValues({"critic.optim.lr": "1e-5", "algorithm.lam": "0.95"})))
    assert after["algorithm.adv_estimator"] == ("set", "spo")
    assert after["critic.optim.lr"] == after["algorithm.lam"] == ("drop", None)


BAD = {
    "algorithm.norm_adv_by_std_in_grpo": "False",
    "algorithm.use_kl_in_reward": "True",
    "algorithm.filter_groups.enable": "true",
    "data.gen_batch_size": "1536",
    "algorithm.gamma": "0.9",
    "algorithm.lam": "0.95",
    "critic.enable": "True",
    "trainer.critic_warmup": "5",
    "trainer.use_v1": "False",
    "skip.rollout_tq.enable": "True",
    "algorithm.use_pf_ppo": "True",
    "actor_rollout_ref.actor.policy_loss.loss_mode": "gpg",
}
HARMLESS = {
    "algorithm.use_kl_in_reward": "False",
    "algorithm.filter_groups.enable": "False",
    "data.gen_batch_size": "null",
    "critic.enable": "null",
    "trainer.critic_warmup": "0",
    "trainer.use_v1": "True",
}


@pytest.mark.parametrize("one", UNWANTED, ids=lambda one: one.key)
def test_what_spo_refuses_or_ignores_is_dropped(one):
    for estimator in ("gae", "reinforce_plus_plus") if one.key == "algorithm.gamma" else ("gae",):
        run = {"algorithm.adv_estimator": estimator, one.key: BAD[one.key]}
        assert decided(decide(RunValues(run)))[one.key] == ("drop", None)
        in_file = decided(decide(RunValues({}, {**run})))
        assert in_file.get(one.key) == (None if one.neutral is None else ("add", one.neutral))
    if one.key in HARMLESS:
        assert one.key not in decided(decide(RunValues(grpo(**{one.key: HARMLESS[one.key]}))))


def test_what_hangs_on_a_dropped_key_goes_with_it():
    kl = {"algorithm.kl_ctrl.kl_coef": "0.1", "algorithm.kl_penalty": "kl"}
    assert (
        decided(decide(RunValues(grpo(**kl, **{"algorithm.use_kl_in_reward": "True"}))))["algorithm.kl_penalty"][0]
        == "drop"
    )
    assert not set(kl) & set(decided(decide(RunValues(grpo(**kl)))))


def test_values_of_the_users_own_are_kept_on_purpose():
    clip = "actor_rollout_ref.actor.clip_ratio_high"
    assert decided(decide(RunValues(grpo(**{clip: "0.25"}))))[clip] == ("keep", "0.25")
    assert clip not in decided(decide(RunValues(grpo(**{clip: "0.280"}))))
    assert decided(decide(RunValues(grpo())))[clip] == ("preset", "0.28")
    # in a file of one's own the preset would win over it
    assert decided(decide(RunValues(grpo(), {clip: "0.25"})))[clip] == ("add", "0.25")


def test_settings_that_other_keys_ask_for():
    bypass = {"algorithm.rollout_correction.bypass_mode": "True"}
    replay = {"actor_rollout_ref.actor.megatron.router_replay.mode": "R3"}
    assert decided(decide(RunValues(grpo(**bypass))))["spo.forgetting.reference"] == ("add", "updated")
    both = decided(decide(RunValues(grpo(**bypass, **replay))))
    assert both["spo.forgetting.mode"] == ("add", "constant")
    assert "spo.forgetting.reference" not in both
    assert "spo.forgetting.mode" not in decided(decide(RunValues(grpo(**replay)), preset="plus_plus"))


NAMES = st.text("ab/._- ", min_size=1, max_size=12).map(lambda name: f"x{name}x")


@given(NAMES, st.lists(NAMES, min_size=1, max_size=3), st.sampled_from(["'", '"']))
def test_the_command_for_offline_values_can_be_pasted_into_a_shell(model, files, quote):
    listed = "[" + ", ".join(f"{quote}{file}{quote}" for file in files) + "]"
    keys = {"actor_rollout_ref.model.path": f"{quote}{model}{quote}", "data.train_files": listed}
    [need] = [need for need in decide(RunValues(grpo(**keys))).needs if "offline values" in need]
    command = need.partition("`")[2].partition(" <overrides>`")[0]
    # several files with commas, as `spo-verl values estimate` reads them
    assert shlex.split(command) == ["spo-verl", "values", "estimate", model, ",".join(files), "-o", "values.parquet"]


@pytest.mark.parametrize("key", ["reward_model.reward_manager", "reward.reward_manager.name"])
@pytest.mark.parametrize(
    ("enable", "factor", "low"), [("True", "0.5", "-1.5"), ("True", None, "-2"), ("False", "1", "-1")]
)
def test_the_range_of_dapos_rewards_is_declared(key, enable, factor, low):
    cfg = f"{key.partition('.')[0]}.reward_kwargs.overlong_buffer_cfg"
    run = grpo(
        **{key: "dapo", f"{cfg}.enable": enable}, **({} if factor is None else {f"{cfg}.penalty_factor": factor})
    )
    plan = decide(RunValues(run))
    assert decided(plan)["spo.reward.low"] == ("add", low)
    assert any(need.startswith(f"rewards lie in [{low}, 1]") for need in plan.needs)
    assert "spo.reward.low" not in decided(decide(RunValues({**run, "spo.reward.key": "acc"})))


def test_too_few_rows_are_refused_with_the_preset_that_fits():
    run = RunValues(grpo(**{N: "16", BATCH: "512"}))
    with pytest.raises(SpoConfigError, match="8192 different prompts.*7473 rows.*--preset bspo"):
        decide(run, rows=7473)
    with pytest.raises(SpoConfigError, match="500 rows: lower"):
        decide(run, rows=500)
    with pytest.raises(SpoConfigError, match="1000 rows"):
        decide(RunValues({**run.given, "data.train_max_samples": "1000"}), rows=7473)
    kept = decided(decide(run, rows=7473, preset="bspo"))
    assert kept[N] == ("keep", "16")
    assert kept[BATCH] == ("keep", "512")


@pytest.mark.parametrize("text", ["0", "-8", "8.0", "8,16", "", "auto", "1e3", "[8]", "٣"])
def test_a_size_has_to_be_a_whole_number(text):
    with pytest.raises(SpoConfigError, match=r"rollout\.n=.*whole number"):
        decide(RunValues(grpo(**{N: text})))


def test_a_value_that_only_the_script_knows_is_asked_for():
    with pytest.raises(SpoConfigError, match="--env"):
        decide(RunValues(grpo(**{N: "$(nproc)"}), unknown={N: "$(nproc)"}))
    with pytest.raises(SpoConfigError, match="--env"):
        decide(RunValues({"algorithm.adv_estimator": "$X"}, unknown={"algorithm.adv_estimator": "$X"}))


def test_spo_stays_as_it_is_and_a_preset_with_an_old_estimator_is_corrected():
    assert decide(RunValues({"algorithm.adv_estimator": "spo", N: "8"})).already
    assert decide(RunValues({"spo": "paper"})).already
    after = decided(decide(RunValues(grpo(spo="paper", **{BATCH: "64"}))))
    assert after["algorithm.adv_estimator"] == ("set", "spo")
    assert "spo" not in after
    assert after[BATCH] == ("keep", "64")  # rollout.n is the preset's 1

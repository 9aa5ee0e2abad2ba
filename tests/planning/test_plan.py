"""A plan as a whole: the figures follow the configuration, and verdicts name the key that is wrong."""

import re

import pytest
from omegaconf import OmegaConf

from spo_verl.errors import SpoConfigError
from spo_verl.launching.composition import compose
from spo_verl.planning.compute import drift_forwards
from spo_verl.planning.inputs import GIB, Assumptions, run_of
from spo_verl.planning.shapes import PUBLIC
from tests.planning.models import plan_with, run_with, verdict

ACTOR = "actor_rollout_ref.actor"
ROLLOUT = "actor_rollout_ref.rollout"


@pytest.fixture(scope="module")
def usual():
    return plan_with()


def test_the_usual_recipe_in_numbers_worked_out_by_hand(usual):
    shape = PUBLIC["Qwen3-8B"]
    assert shape.parameters == 8_190_735_360
    assert usual["step_tokens_worst"].value == 2048 * 10240
    assert usual["step_tokens"].value == 2048 * 5120
    assert usual["updates"].value == 8
    assert usual["weights"].value == shape.parameters * 4 / 8
    assert usual["optimizer"].value == 2 * usual["weights"].value
    assert usual["kv_per_token"].value == 2 * 36 * 8 * 128 * 2 == 147_456
    assert usual["kv_per_token_gpu"].value == 73_728  # over two GPUs
    assert usual["logits"].value == 10240 * 151_936 * 2
    assert usual["activations"].value == 10240 * 36 * 4096 * 2
    assert usual["tracker"].value == 14_000 * 48
    assert usual["stored_response"].value == 1024 * (8 * 6 + 1) + 20
    cache = 0.5 * 80 * GIB - shape.parameters - 4 * GIB
    assert usual["kv_cache"].value == cache
    assert usual["concurrent_responses"].value == 4 * (cache // (73_728 * 10240))


@pytest.mark.parametrize(
    ("overrides", "forwards"),
    [
        (["spo.forgetting.reference=acting"], (1, 0)),
        (["spo.forgetting.reference=updated"], (1, 1)),
        (["spo.drift.measure_both=True"], (2, 1)),
        (["spo.forgetting.mode=drift"], (0, 0)),
        (["spo.forgetting.mode=version"], (0, 0)),
        (["spo.forgetting.mode=constant"], (0, 0)),
    ],
)
def test_the_price_of_each_drift_mode(overrides, forwards):
    plan = plan_with(*overrides)
    assert drift_forwards(plan.run) == forwards
    # Stored responses are taken to be as long as the new ones; training is old log-probs and the update.
    assert plan["drift"].value == sum(forwards) * plan["forward"].value
    expected = sum(forwards) / (1 + (plan["update"].value / plan["forward"].value))
    assert plan["drift_share"].value == pytest.approx(expected)


SIZES = (
    "trainer.nnodes",
    "trainer.n_gpus_per_node",
    "data.train_batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
    f"{ROLLOUT}.n",
    f"{ROLLOUT}.tensor_model_parallel_size",
    f"{ROLLOUT}.max_num_seqs",
    f"{ACTOR}.ppo_mini_batch_size",
    f"{ACTOR}.ppo_epochs",
    f"{ACTOR}.ppo_max_token_len_per_gpu",
    f"{ACTOR}.ulysses_sequence_parallel_size",
)


def test_a_size_below_one_and_a_share_beyond_one_are_refused_with_the_key():
    composed = compose(["+spo=paper", "actor_rollout_ref.model.path=Qwen/Qwen3-8B"], config_name="ppo_trainer").config
    run_of(composed)
    wrong = {**dict.fromkeys(SIZES, (0, -5, float("inf"), 0.5)),
             f"{ROLLOUT}.gpu_memory_utilization": (0, -0.1, 7, float("nan"), True)}  # fmt: skip
    for key, values in wrong.items():
        before = OmegaConf.select(composed, key)
        for value in values:
            OmegaConf.update(composed, key, value)
            with pytest.raises(SpoConfigError, match=f"^{re.escape(f'{key}={value}')}: it has to be"):
                run_of(composed)
        OmegaConf.update(composed, key, before)
    run_of(composed)


def test_budgets_lower_the_price():
    full = plan_with()["drift"].value
    assert plan_with("spo.drift.max_prompts=512")["drift"].value == full / 4
    cut = plan_with("spo.drift.max_tokens=1024")
    assert cut["drift"].value < 0.6 * full
    assert cut["stored_response"].value == 128 * 49 + 20


def test_grpo_has_no_tracker_and_no_divergence():
    plan = plan_with("algorithm.adv_estimator=grpo", f"{ROLLOUT}.n=8", "data.train_batch_size=256")
    assert "tracker" not in plan.sections
    assert plan["step_tokens_worst"].value == 2048 * 10240
    with pytest.raises(KeyError):
        plan["drift"]


def test_megatron_state_by_its_parallel_sizes():
    plan = plan_with("model_engine=megatron", f"{ACTOR}.megatron.tensor_model_parallel_size=2",
                     f"{ACTOR}.megatron.pipeline_model_parallel_size=2", "trainer.nnodes=2")  # fmt: skip
    shape = PUBLIC["Qwen3-8B"]
    stage = 18 * shape.layer_parameters + shape.vocabulary * shape.hidden + shape.hidden
    assert plan["weights"].value == 2 * stage / 2
    assert plan["gradients"].value == 4 * stage / 2
    assert plan["optimizer"].value == 12 * stage / (2 * 4)
    assert plan["logits"].value == 10240 * 151_936 * (2 + 4) / 2


def test_lora_trains_less_but_holds_the_same_weights(usual):
    plan = plan_with("actor_rollout_ref.model.lora_rank=32")
    assert plan["weights"].value == usual["weights"].value
    assert plan["optimizer"].value < 0.02 * usual["optimizer"].value


def test_colocated_rollout_beside_resident_state():
    plan = plan_with(f"{ROLLOUT}.gpu_memory_utilization=0.9")
    wrong = verdict(plan, "rollout engine next to the training state")
    assert not wrong.fits
    assert "param_offload=True" in wrong.advice
    assert not plan.fits
    offloaded = plan_with(f"{ROLLOUT}.gpu_memory_utilization=0.9", f"{ACTOR}.fsdp_config.param_offload=True",
                          f"{ACTOR}.fsdp_config.optimizer_offload=True")  # fmt: skip
    assert verdict(offloaded, "rollout engine next to the training state").fits
    assert offloaded["host_offload"].value == pytest.approx(12 * offloaded.shape.parameters)


def test_a_token_limit_below_the_longest_sequence_is_named():
    wrong = verdict(plan_with(f"{ACTOR}.ppo_max_token_len_per_gpu=8192"), "longest sequence in the update")
    assert not wrong.fits
    assert "at least 10,240" in wrong.advice
    spread = plan_with(f"{ACTOR}.ppo_max_token_len_per_gpu=8192", f"{ACTOR}.ulysses_sequence_parallel_size=4")
    assert verdict(spread, "longest sequence in the update").fits


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ([f"{ACTOR}.ppo_max_token_len_per_gpu=400000"], "ppo_max_token_len_per_gpu"),
        ([f"{ACTOR}.ppo_max_token_len_per_gpu=400000"], "use_fused_kernels"),
        (["actor_rollout_ref.model.enable_gradient_checkpointing=False"], "enable_gradient_checkpointing=True"),
        (["trainer.n_gpus_per_node=1"], "--gpus"),
    ],
)
def test_an_update_that_does_not_fit_names_what_is_largest(overrides, key):
    wrong = verdict(plan_with(*overrides), "actor update")
    assert not wrong.fits
    assert key in wrong.advice


def test_fused_kernels_need_no_logits():
    plan = plan_with("actor_rollout_ref.model.use_fused_kernels=True")
    with pytest.raises(KeyError):
        plan["logits"]


def test_a_cache_too_small_for_one_response():
    wrong = verdict(plan_with(f"{ROLLOUT}.gpu_memory_utilization=0.15"), "KV cache for a response of full length")
    assert not wrong.fits
    assert "tensor_model_parallel_size" in wrong.advice


def test_sizes_that_do_not_divide_are_named():
    plan = plan_with("trainer.n_gpus_per_node=6", f"{ROLLOUT}.tensor_model_parallel_size=4")
    assert not verdict(plan, "rollout GPUs").fits


def test_separate_pools():
    plan = plan_with("trainer.v1.trainer_mode=separate_async", f"{ROLLOUT}.nnodes=2", f"{ROLLOUT}.n_gpus_per_node=4")
    assert (plan.run.gpus, plan.run.rollout_gpus, plan.run.engines) == (8, 8, 4)
    assert "0.0 GiB of training state" in verdict(plan, "rollout engine next to the training state").reason


def test_time_only_from_what_the_user_assumes(usual):
    assert "time of a step" not in usual.sections
    with pytest.raises(SpoConfigError, match="--gpu-tflops"):
        plan_with(assumed=Assumptions(mfu=0.4))
    plan = plan_with(assumed=Assumptions(mfu=0.5, gpu_tflops=1000, tokens_per_second=1024, response_tokens=4096))
    work = plan["log_probs"].value + plan["update"].value
    assert plan["training_time"].value == pytest.approx(work / (8 * 0.5e15))
    assert plan["generation_time"].value == pytest.approx(2048 * 4096 / (8 * 1024))
    assert any("0.5 of 1000 TFLOP/s" in line for line in plan.assumptions)


def test_too_few_prompts():
    assert not verdict(plan_with(assumed=Assumptions(prompts=100)), "different prompts").fits


def test_a_type_that_is_not_known_is_refused():
    with pytest.raises(SpoConfigError, match="model_dtype=int3"):
        run_with(f"{ACTOR}.fsdp_config.model_dtype=int3")

"""Small scripts in the forms that users of verl have, and a real shell to read them, with a stand-in for python."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

PLAIN = """\
# GSM8K with groups of five
set -x

python3 -m verl.trainer.main_ppo \\
    algorithm.adv_estimator=grpo \\
    data.train_files=$HOME/data/train.parquet \\
    data.train_batch_size=1024 \\
    actor_rollout_ref.model.path=Qwen/Qwen3-0.6B \\
    actor_rollout_ref.actor.ppo_mini_batch_size=256 \\
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16 \\
    actor_rollout_ref.actor.use_kl_loss=True \\
    actor_rollout_ref.rollout.name=vllm \\
    actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16 \\
    actor_rollout_ref.rollout.n=5 \\
    actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=16 \\
    algorithm.norm_adv_by_std_in_grpo=False \\
    trainer.logger='["console"]' \\
    trainer.total_epochs=15 "$@"
"""

DYNAMIC_SAMPLING = """\
#!/usr/bin/env bash
set -xeuo pipefail
adv_estimator=grpo
use_kl_in_reward=False
enable_overlong_buffer=True
overlong_penalty_factor=1.0
train_prompt_bsz=512
gen_prompt_bsz=$((train_prompt_bsz * 3))
n_resp_per_prompt=16
train_prompt_mini_bsz=32
max_response_length=$((1024 * 8))
max_tokens=$(((1024 + max_response_length) / 2))
exp_name="dapo-n${n_resp_per_prompt}"
RAY_ADDRESS=${RAY_ADDRESS:-"http://localhost:8265"}

python3 -m verl.trainer.main_ppo \\
    data.train_batch_size=${train_prompt_bsz} \\
    data.gen_batch_size=${gen_prompt_bsz} \\
    data.max_response_length=${max_response_length} \\
    actor_rollout_ref.rollout.n=${n_resp_per_prompt} \\
    algorithm.adv_estimator=${adv_estimator} \\
    algorithm.use_kl_in_reward=${use_kl_in_reward} \\
    algorithm.filter_groups.enable=True \\
    algorithm.filter_groups.metric=acc \\
    actor_rollout_ref.actor.clip_ratio_high=0.3 \\
    actor_rollout_ref.actor.use_dynamic_bsz=True \\
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=$max_tokens \\
    actor_rollout_ref.actor.ppo_mini_batch_size=${train_prompt_mini_bsz} \\
    actor_rollout_ref.rollout.name=vllm \\
    reward.reward_manager.name=dapo \\
    +reward.reward_kwargs.overlong_buffer_cfg.enable=${enable_overlong_buffer} \\
    +reward.reward_kwargs.overlong_buffer_cfg.penalty_factor=${overlong_penalty_factor} \\
    trainer.experiment_name="${exp_name}" \\
    trainer.total_training_steps=200
"""

SEVERAL_METHODS = """\
ALGO=${ALGO:-grpo}
N=${N:-8}
BATCH=${BATCH:-128}
COMMON=(
    data.train_batch_size=${BATCH}
    # updates: four
    actor_rollout_ref.actor.ppo_mini_batch_size=32
    actor_rollout_ref.actor.use_dynamic_bsz=True
    actor_rollout_ref.rollout.name=vllm
    trainer.total_training_steps=100
)
case "$ALGO" in
    grpo | rloo)
        METHOD=(algorithm.adv_estimator=$ALGO actor_rollout_ref.rollout.n=$N)
        ;;
    gae)
        METHOD=(
            algorithm.adv_estimator=gae
            critic.optim.lr=1e-5
            critic.ppo_micro_batch_size_per_gpu=4
        )
        ;;
    *) echo "unknown: $ALGO" >&2; exit 1 ;;
esac
if [ -n "${DEBUG:-}" ] && [[ $DEBUG != 0 ]]; then
    COMMON+=(trainer.val_only=True)
fi
python3 -m verl.trainer.main_ppo "${METHOD[@]}" "${COMMON[@]}" "$@" 2>&1 | cat
"""

CRITIC = """\
python3 -m verl.trainer.main_ppo \\
 data.train_batch_size=512 \\
 actor_rollout_ref.actor.ppo_mini_batch_size=128 \\
 actor_rollout_ref.actor.use_dynamic_bsz=True \\
 actor_rollout_ref.rollout.name=vllm \\
 algorithm.lam=0.95 \\
 algorithm.use_kl_in_reward=True \\
 algorithm.kl_ctrl.kl_coef=0.001 \\
 trainer.critic_warmup=5 \\
 trainer.total_epochs=15 \\
 critic.optim.lr=1e-5 \\
 critic.ppo_micro_batch_size_per_gpu=32
"""

LORA = """\
nproc=8
ARGS="algorithm.adv_estimator=rloo data.train_batch_size=64 \\
    actor_rollout_ref.model.lora_rank=32 actor_rollout_ref.model.lora_alpha=32 \\
    actor_rollout_ref.rollout.load_format=safetensors \\
    actor_rollout_ref.rollout.name=vllm actor_rollout_ref.rollout.n=4 \\
    actor_rollout_ref.actor.use_dynamic_bsz=True \\
    actor_rollout_ref.actor.ppo_mini_batch_size=$nproc"
nohup python3 -u -m verl.trainer.main_ppo $ARGS trainer.n_gpus_per_node=$nproc \\
    trainer.total_training_steps=10 > /dev/null &
wait
"""

MEGATRON = """\
export CUDA_DEVICE_MAX_CONNECTIONS=1
if [ "${BACKEND:-megatron}" == megatron ]; then CONFIG=ppo_megatron_trainer; else CONFIG=ppo_trainer; fi
BSZ=64
ray job submit --address="${RAY:-http://127.0.0.1:8265}" -- python3 -m verl.trainer.main_ppo --config-path=config \\
    --config-name="$CONFIG.yaml" \\
    algorithm.adv_estimator=grpo \\
    data.train_batch_size=$BSZ \\
    actor_rollout_ref.actor.ppo_mini_batch_size=$BSZ \\
    actor_rollout_ref.actor.use_dynamic_bsz=True \\
    actor_rollout_ref.actor.policy_loss.loss_mode=gspo \\
    actor_rollout_ref.actor.megatron.tensor_model_parallel_size=2 \\
    actor_rollout_ref.rollout.name=vllm \\
    actor_rollout_ref.rollout.n=8 \\
    trainer.total_training_steps=10
"""

TOOLS = """\
function launch() {
    local kind=$1; shift
    "$@" trainer.experiment_name="tools-$kind"
}
ulimit -n 65535
PROJECT_DIR="$(pwd)"
launch a python3 -m verl.trainer.main_ppo \\
    algorithm.adv_estimator=reinforce_plus_plus_baseline \\
    actor_rollout_ref.rollout.multi_turn.enable=True \\
    actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent \\
    actor_rollout_ref.rollout.multi_turn.tool_config_path="$PROJECT_DIR/tools.yaml" \\
    actor_rollout_ref.rollout.name=sglang \\
    actor_rollout_ref.actor.use_dynamic_bsz=True \\
    actor_rollout_ref.rollout.n=16 \\
    data.train_batch_size=256 \\
    actor_rollout_ref.actor.ppo_mini_batch_size='${data.train_batch_size}' \\
    trainer.total_training_steps=10
"""

VISION = """\
ENGINE=${1:-vllm}
[[ "$ENGINE" == vllm ]] && EXTRA="+actor_rollout_ref.rollout.engine_kwargs.vllm.disable_mm_preprocessor_cache=True"
python3 -m verl.trainer.main_ppo algorithm.adv_estimator="grpo" data.image_key=images data.train_batch_size="512" \\
    actor_rollout_ref.rollout.name=$ENGINE actor_rollout_ref.rollout.n="5" \\
    actor_rollout_ref.actor.use_dynamic_bsz=True \\
    actor_rollout_ref.actor.ppo_mini_batch_size=128 trainer.total_epochs=3 ${EXTRA:-} "${@:2}"
"""

NESTED = """\
LR=1e-6
bash -c "python3 -m verl.trainer.main_ppo algorithm.adv_estimator=grpo actor_rollout_ref.rollout.n=2 \\
    data.train_batch_size=8 actor_rollout_ref.actor.ppo_mini_batch_size=8 actor_rollout_ref.actor.optim.lr=$LR \\
    actor_rollout_ref.rollout.name=vllm actor_rollout_ref.actor.use_dynamic_bsz=True trainer.total_training_steps=1"
bash <<EOF
python3 -m verl.trainer.main_ppo algorithm.adv_estimator=opo actor_rollout_ref.rollout.n=4 \\
    trainer.total_training_steps=1 \\
    data.train_batch_size=8 actor_rollout_ref.actor.ppo_mini_batch_size=8 actor_rollout_ref.actor.optim.lr=$LR \\
    actor_rollout_ref.rollout.name=vllm actor_rollout_ref.actor.use_dynamic_bsz=True
EOF
"""

STOCK = {
    "plain": PLAIN,
    "dynamic sampling": DYNAMIC_SAMPLING,
    "several methods": SEVERAL_METHODS,
    "critic": CRITIC,
    "lora": LORA,
    "megatron": MEGATRON,
    "tools": TOOLS,
    "vision": VISION,
    "nested": NESTED,
}

BASH = shutil.which("bash")
_STAND_IN = """\
#!{bash}
for word in "$@"; do printf '%s\\0' "$word" >> "$WORDS"; done
printf '\\1\\0' >> "$WORDS"
"""


def run_by_a_shell(script: str, folder: Path, *arguments: str, **variables: str) -> list[list[str]]:
    """The arguments of every ``main_ppo`` that bash starts for this script; nothing but a stand-in can be started."""
    assert BASH is not None
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    for name in ("python3", "ray", "nohup"):
        if not (tools / name).exists():
            (tools / name).write_text(_STAND_IN.format(bash=BASH))
            (tools / name).chmod(0o755)
    for name in ("cat", "bash"):
        if not (tools / name).exists():
            (tools / name).symlink_to(os.path.realpath(shutil.which(name) or name))
    words = folder / "words"
    words.unlink(missing_ok=True)
    (folder / "run.sh").write_text(script)
    subprocess.run(
        [BASH, str(folder / "run.sh"), *arguments],
        env={"PATH": str(tools), "HOME": str(folder), "WORDS": str(words), **variables},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    runs: list[list[str]] = [[]]
    for word in words.read_text().split("\0")[:-1] if words.exists() else ():
        if word == "\1":
            runs.append([])
        else:
            runs[-1].append(word)
    return [run[run.index("verl.trainer.main_ppo") + 1 :] for run in runs if "verl.trainer.main_ppo" in run]

"""One real launch of verl's trainer with the loop: real vLLM, real masks, real log-probs of the training engine.

A quarter of the prompts makes native tool calls, a quarter code in running text, a quarter is left to the untrained
model, which now and then samples the token that closes a call, and a quarter stops at a text.
"""

import json
import re

import pandas as pd
import pytest

from spo_verl.small.model import ModelShape, build_model
from tests.agent.chat import build_tokenizer
from tests.system.harness import launch, main_ppo, row

pytestmark = [pytest.mark.slow, pytest.mark.system, pytest.mark.timeout(1500)]

AGENTS = """
- name: forced_tool
  _target_: tests.agent.forced_calls.ForcedCallsLoop
  style: tool
  max_output_tokens: 64
  reserve_tokens: 8
  interpreter: {packages: [sympy], memory_mb: 512}
- name: forced_code
  _target_: tests.agent.forced_calls.ForcedCallsLoop
  style: code
  max_output_tokens: 64
  reserve_tokens: 8
  interpreter: {packages: [sympy], memory_mb: 512}
- name: free
  _target_: spo_verl.agent.loop.CodeInterpreterLoop
  style: tool
  reserve_tokens: 8
  interpreter: {packages: [sympy], memory_mb: 512}
- name: text_stop
  _target_: tests.agent.forced_calls.StopOnTextLoop
  style: code
  interpreter: {packages: [], memory_mb: 512}
"""
STEPS = 2
BATCH = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tool_run")
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder / "model")
    model = build_model(tokenizer, ModelShape(layers=2), seed=0)
    model.config.max_position_embeddings = 4096
    model.save_pretrained(folder / "model")
    agents = ("forced_tool", "forced_code", "free", "text_stop")
    rows = [{**row(index), "agent_name": agents[index % 4]} for index in range(STEPS * BATCH)]
    pd.DataFrame(rows).to_parquet(folder / "train.parquet")
    pd.DataFrame(rows[:6]).to_parquet(folder / "val.parquet")
    (folder / "agents.yaml").write_text(AGENTS)
    command = [
        *main_ppo(folder, "tools"), "+spo=paper",
        f"data.train_batch_size={BATCH}", f"actor_rollout_ref.actor.ppo_mini_batch_size={BATCH}",
        "data.max_prompt_length=1024", "data.max_response_length=700",
        "actor_rollout_ref.actor.optim.lr=1e-3", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
        "actor_rollout_ref.rollout.calculate_log_probs=True",
        "actor_rollout_ref.rollout.max_model_len=2048", "actor_rollout_ref.rollout.max_num_seqs=16",
        "actor_rollout_ref.rollout.max_num_batched_tokens=2048",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={folder}/agents.yaml",
        "reward.custom_reward_function.path=tests/support/reward.py",
        f"trainer.total_training_steps={STEPS}", "trainer.save_freq=-1", "trainer.test_freq=-1",
    ]  # fmt: skip
    finished = launch(folder, "tools", command, seconds=900)
    assert finished.returncode == 0, finished.log[-4000:]
    return finished


def dumped(run):
    for path in sorted(run.rollouts.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            yield json.loads(line)


def test_the_training_engine_agrees_with_the_rollout_on_every_trained_token(run):
    """A shift by one, a wrong mask or a token changed on the way would show as a difference near 1."""
    metrics = run.metrics()
    assert set(metrics) == {1, 2}
    for step in metrics.values():
        assert step["training/rollout_probs_diff_max"] < 1e-4
        assert step["training/rollout_probs_diff_valid"] == 1


def test_programs_were_run_and_their_output_is_in_the_responses(run):
    forced = [json.loads(text) for text in re.findall(r"FORCED (\{.*?\})", run.log)]
    assert {(entry["style"], entry["interpreter_turns"] >= 2) for entry in forced} == {("tool", True), ("code", True)}
    assert all(entry["interpreter_errors"] >= entry["index"] // 4 % 2 for entry in forced)
    outputs = [entry["output"] for entry in dumped(run)]
    assert len(outputs) == STEPS * BATCH
    code = [text for text in outputs if text.startswith("<code>")]
    tool = [text for text in outputs if text.startswith("<tool_call>\n{")]
    assert code
    assert tool
    assert all("<interpreter>\n42\n</interpreter>" in text for text in code)
    assert all("<tool_response>\n42\n</tool_response>" in text for text in tool)
    assert all("{2: 3, 3: 2, 5: 1}" in text for text in code + tool)
    assert any("division by zero" in text for text in code)
    assert any("division by zero" in text for text in tool)
    assert any("A call was closed that was not opened" in text for text in outputs)  # by the model itself


def test_the_server_halts_at_a_text_and_keeps_the_tokens_of_it(run):
    seen = [json.loads(text) for text in re.findall(r"STOPPED (\{.*?\})", run.log)]
    assert sum(entry["whole"] for entry in seen) >= 2
    assert not any(entry["inside"] for entry in seen)  # nothing was generated beyond
    assert all(entry["tokens"] == entry["logprobs"] for entry in seen)


def test_lengths_and_turns_are_those_that_verl_reports(run):
    for step in run.metrics().values():
        assert step["response_length/max"] <= 700
        assert step["num_turns/max"] >= 1 + 3 + 2  # three generations and two outputs after the prompt
        assert step["num_turns/min"] >= 2


def test_nothing_failed(run):
    assert all(step["spo/rollouts/failed_total"] == 0 for step in run.metrics().values())

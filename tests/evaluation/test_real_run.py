"""verl's validation by itself (``trainer.val_only``), graded by the reward in Ray's workers, read by ``evaluate``.

python -m pytest tests/evaluation/test_real_run.py -m slow
"""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spo_verl.small.model import ModelShape, build_model, save
from tests.cli.helpers import run_json
from tests.evaluation.written_agent import is_right, said
from tests.support.gsm8k import build_tokenizer
from tests.system.harness import launch, main_ppo

PROMPTS, RESPONSES = 30, 4


def write_run(folder):
    def row(index):
        return {
            "data_source": "aime_2024",
            "prompt": [{"role": "user", "content": f"What is the square root of three times {index} squared?"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": f"{index}\\sqrt{{3}}"},
            "extra_info": {"index": index, "split": "test"},
        }

    rows = [row(index) for index in range(2, 2 + PROMPTS)]
    for name in ("train", "val"):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    tokenizer = build_tokenizer([rows[0]["prompt"][0]["content"], said(2, 0), "<think></think>\\boxed{\\sqrt{}}"])
    model = build_model(tokenizer, ModelShape(layers=1), seed=0)
    model.config.max_position_embeddings = 256
    save(model, tokenizer, folder / "model")
    (folder / "agents.yaml").write_text(
        "- name: written\n  _target_: tests.evaluation.written_agent.WrittenAgentLoop\n"
    )


@pytest.mark.slow
@pytest.mark.system
def test_validation_alone_gives_the_metrics_that_were_written(tmp_path):
    write_run(tmp_path)
    command = [
        *main_ppo(tmp_path, "evaluation"), "algorithm.adv_estimator=spo", "+spo=paper",
        "trainer.val_only=True", "trainer.val_before_train=True", f"trainer.validation_data_dir={tmp_path}/generations",
        "data.train_batch_size=8", "data.max_prompt_length=96", "data.max_response_length=96",
        "actor_rollout_ref.actor.ppo_mini_batch_size=8", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8", "actor_rollout_ref.rollout.max_model_len=192",
        f"actor_rollout_ref.rollout.val_kwargs.n={RESPONSES}", "actor_rollout_ref.rollout.val_kwargs.do_sample=True",
        "actor_rollout_ref.rollout.val_kwargs.temperature=0.6", "actor_rollout_ref.rollout.val_kwargs.top_p=0.95",
        "actor_rollout_ref.rollout.val_kwargs.top_k=20",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={tmp_path}/agents.yaml",
        "actor_rollout_ref.rollout.agent.default_agent_loop=written",
        "reward.custom_reward_function.path=pkg://spo_verl.agent.math_reward",
        "reward.custom_reward_function.name=compute_score", "reward.num_workers=2",
        "+reward.custom_reward_function.reward_kwargs.conditions=[think_closed_once]",
    ]  # fmt: skip
    done = launch(tmp_path, "evaluation", command, seconds=500)
    assert done.returncode == 0, done.log[-4000:]
    found = run_json("evaluate", tmp_path / "generations")
    assert found["problems"] == []
    [benchmark] = found["runs"][0]["benchmarks"].values()
    right = [[is_right(index, session) for session in range(RESPONSES)] for index in range(2, 2 + PROMPTS)]
    share = sum(map(sum, right)) / (PROMPTS * RESPONSES)
    assert (benchmark["prompts"], benchmark["k"], benchmark["missing_answers"]) == (PROMPTS, RESPONSES, 0.0)
    assert benchmark["avg"]["mean"] == pytest.approx(share)
    assert benchmark["pass"]["mean"] == 1.0  # every prompt has a right one among four in a row
    # Two right ones beat wrong answers that all differ; one right one ties with three others.
    assert benchmark["maj"]["mean"] == pytest.approx(sum(1.0 if sum(row) == 2 else 0.25 for row in right) / PROMPTS)
    assert done.metrics()[0][f"val-core/aime_2024/acc/mean@{RESPONSES}"] == pytest.approx(share, abs=1e-3)
    again = run_json("evaluate", tmp_path / "generations", "--regrade")["runs"][0]
    assert again["regraded"] == {"responses": PROMPTS * RESPONSES, "changed": 0, "given_up": 0}

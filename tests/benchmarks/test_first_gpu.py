"""benchmarks/first_gpu.sh: forwards against transformers, the report by hand, part two without verl."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3ForCausalLM

from benchmarks import first_gpu, first_gpu_shapes
from benchmarks.first_gpu_shapes import SETTINGS, Policy, TokenLogProb, entropy, make_outputs, pack
from tests.docs.pages import REPOSITORY
from tests.recipes.helpers import ROOT, composed

SETTING = replace(SETTINGS["qwen3_0_6b"].small(), log_prob_tokens=48, train_tokens=40)
LENGTHS = [5, 1, 20, 9]


@pytest.fixture(scope="module")
def policy():
    return Policy(SETTING, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def outputs():
    return make_outputs(SETTING, LENGTHS, np.random.default_rng(0))


@pytest.fixture(scope="module")
def peer(policy):
    """The same weights with transformers' own attention, asked for one sequence at a time."""
    config = policy.model.config.__class__(**policy.model.config.to_dict())
    config._attn_implementation = "eager"
    model = Qwen3ForCausalLM(config)
    model.load_state_dict(policy.model.state_dict())
    return model


def log_probs(model, output):
    ids = torch.cat([output.prompt, output.response])[None]
    rows = model(input_ids=ids).logits[0].log_softmax(dim=-1)
    return rows[:-1].gather(1, ids[0, 1:, None])[len(output.prompt) - 1 :, 0]


def test_log_probs_of_packed_sequences_are_those_of_each_alone(policy, outputs, peer):
    scored = policy.score([one.sequence(one.response, one.mask) for one in outputs], with_entropy=True)
    assert len(pack([SETTING.prompt_tokens + length for length in LENGTHS], SETTING.log_prob_tokens)) > 1
    for one, found in zip(outputs, scored, strict=True):
        np.testing.assert_allclose(found, log_probs(peer, one).detach().numpy(), atol=2e-6)


def test_the_gradient_is_that_of_the_clipped_loss(policy, outputs, peer):
    advantage_B = np.array([1.0, -2.0, 0.5, -0.25])
    policy.model.zero_grad()
    policy.train(outputs, advantage_B)
    loss = torch.zeros(())
    for one, advantage in zip(outputs, advantage_B, strict=True):
        ratio = (log_probs(peer, one) - one.old_log_prob).exp()
        loss = loss + torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.28)).sum() / sum(LENGTHS)
    loss.backward()
    of_peer = dict(peer.named_parameters())
    for name, parameter in policy.model.named_parameters():
        torch.testing.assert_close(parameter.grad, of_peer[name].grad, atol=1e-6, rtol=1e-4)


def test_log_probs_gradient_and_entropy_by_autograd(monkeypatch):
    monkeypatch.setattr(first_gpu_shapes, "CHUNK", 3)
    logits = torch.randn(7, 11, dtype=torch.float32, generator=torch.Generator().manual_seed(1))
    labels, weight = torch.arange(7) % 11, torch.linspace(-1, 1, 7)
    one, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    expected = other.log_softmax(dim=-1).gather(1, labels[:, None]).squeeze(1)
    (expected * weight).sum().backward()
    found = TokenLogProb.apply(one * 1, labels)
    (found * weight).sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(one.grad, other.grad)
    torch.testing.assert_close(entropy(logits), torch.distributions.Categorical(logits=logits).entropy())


def test_packs_hold_every_sequence_once_and_none_more_than_the_limit():
    lengths = [9, 3, 3, 7, 1, 10, 2]
    packs = pack(lengths, 10)
    assert sorted(row for rows in packs for row in rows) == list(range(7))
    assert all(sum(lengths[row] for row in rows) <= 10 for rows in packs)
    assert len(packs) == 4  # 35 tokens
    with pytest.raises(ValueError, match="10 tokens does not fit"):
        pack(lengths, 9)


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_those_of_the_recipes(name, monkeypatch):
    monkeypatch.setenv("SPO_RECIPES_DIR", str(ROOT))
    setting = SETTINGS[name]
    config = composed(setting.recipe).config
    actor = config.actor_rollout_ref.actor
    assert config.actor_rollout_ref.model.path == f"Qwen/{setting.shape.name}"
    assert (setting.batch, setting.longest) == (config.data.train_batch_size, config.data.max_response_length)
    assert setting.gpus == config.trainer.n_gpus_per_node * config.trainer.nnodes
    assert setting.train_tokens == actor.ppo_max_token_len_per_gpu
    assert setting.log_prob_tokens == config.actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu
    assert (actor.clip_ratio_low, actor.clip_ratio_high) == (0.2, 0.28)


def test_lengths_have_the_mean_and_the_limit_of_the_setting():
    setting = replace(SETTINGS["qwen3_8b"], longest=10**9)
    drawn = first_gpu_shapes.response_lengths(setting, 200_000, np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(6000, rel=0.01)
    assert np.log(drawn).std() == pytest.approx(first_gpu_shapes.SPREAD, rel=0.01)
    cut = first_gpu_shapes.response_lengths(SETTINGS["qwen3_8b"], 20_000, np.random.default_rng(0))
    assert (cut.min() > 0, cut.max()) == (True, 16_384)


def test_a_step_is_put_together_from_both_measurements():
    setting = replace(SETTINGS["qwen3_8b"], gpus=4)

    def part(ms):
        return {"milliseconds": {"median": ms}}

    device = {
        "tokens": 1000, "probe_forward_ms": 90.0,
        "parts": {"probe": part(100.0), "old log-probs": part(110.0), "training": part(290.0)},
    }  # fmt: skip
    own = {"draw": 100.0, "probe without forward": 500.0, "observe": 300.0}
    host = {"tokens": 40_000, "milliseconds": {name: {"median": ms} for name, ms in own.items()}}
    found = first_gpu_shapes.shares(setting, device, host)
    # 40 samples on 4 GPUs: (110 + 290) ms x 10 = 4 s; 90 ms x 10 + 0.5 s = 1.4 s; 0.4 s
    assert found == pytest.approx(
        {
            "old_log_probs_and_training_s": 4.0, "probe_s": 1.4, "estimator_s": 0.4,
            "probe_share": 1.4 / 5.8, "estimator_share": 0.4 / 5.8,
        }
    )  # fmt: skip


BLOCKED = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"verl", "vllm", "ray", "transfer_queue", "tensordict", "omegaconf", "hydra"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
sys.argv[1:] = ["--dry-run", "--repeats=1", "--part=shapes", "--shapes=qwen3_0_6b", "--output", sys.argv[1]]
runpy.run_module("benchmarks.first_gpu", run_name="__main__")
"""


@pytest.mark.long
def test_part_two_runs_where_verl_is_absent(tmp_path):
    command = [sys.executable, "-c", BLOCKED, str(tmp_path / "out")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["shapes"]) == ["qwen3_0_6b"]
    for found in report["shapes"].values():
        # The engine has the weights that the stored log-probs came from: D is 0, however sequences are packed.
        assert found["device"]["divergence_of_the_same_policy"] < 1e-3
        assert all(one["milliseconds"]["median"] > 0 for one in found["device"]["parts"].values())
        assert set(found["host"]["milliseconds"]) == {
            "draw", "dispatch", "recall", "probe without forward", "advantage", "observe"
        }  # fmt: skip
    text = (tmp_path / "out" / "report.md").read_text()
    assert "dry run" in text
    assert "| seconds per step | not run | not run |" in text


def record(step, **more):
    data = {
        "timing_s/step": 10.0 + step, "timing_s/gen": 4.0, "timing_s/old_log_prob": 3.0, "timing_s/adv": 0.25,
        "timing_s/update_actor": 2.0, "perf/total_num_tokens": 4000, "perf/throughput": 400.0,
        "actor/perf/max_memory_allocated_gb": 20.5, "actor/perf/max_memory_reserved_gb": 24.0,
        "critic/score/mean": step / 100, "response_length/mean": 300.0,
        "training/rollout_probs_diff_mean": 1e-3, "training/rollout_probs_diff_max": step / 10,
    }  # fmt: skip
    return {"step": step, "data": {**data, **more}}


def spo_record(step, tokens):
    own = {"probe": 1.0, "recall": 0.5, "draw": 0.125, "dispatch": 0.0625, "observe": 0.25}
    more = {f"spo/seconds_total/{name}": value for name, value in own.items()}
    return record(step, **more, **{"spo/drift/tokens_total": tokens})


def test_the_summary_of_a_run_by_hand():
    found = first_gpu.summary([{"step": 0, "data": {}}, *(spo_record(step, 1000.0) for step in (1, 2, 3, 4))], skip=2)
    assert (found["steps"], found["measured_steps"], found["step_s"]) == ([1, 2, 3, 4], 2, 13.5)
    assert found["seconds"]["old_log_prob"] == 3.0 - 1.0 - 0.5  # verl's timer contains SPO's part
    assert (found["seconds"]["probe"], found["seconds"]["gen"]) == (1.0, 4.0)
    assert "ref" not in found["seconds"]
    assert found["reward"] == [0.01, 0.02, 0.03, 0.04]
    assert found["rollout_probs_diff_max"] == 0.4
    probe = found["probe"]
    assert probe["share"] == pytest.approx((1 / 13 + 1 / 14) / 2)
    # 1 ms per token: 4 s for the 4,000 tokens of the batch, in the place of 1 s
    assert probe["share_if_all_stored"] == pytest.approx((4 / 16 + 4 / 17) / 2)


def test_without_a_probe_and_without_steps():
    found = first_gpu.summary([record(1), record(2)], skip=1)
    assert found["seconds"]["old_log_prob"] == 3.0
    assert "probe" not in found
    assert "probe" not in first_gpu.summary([spo_record(1, 0.0)], skip=0)  # nothing stored yet
    with pytest.raises(ValueError, match="no step after step 5"):
        first_gpu.summary([record(1)], skip=5)


def test_the_table_has_both_methods_and_says_what_was_not_run():
    spo = first_gpu.summary([spo_record(1, 1000.0), spo_record(2, 1000.0)], skip=1)
    rows = first_gpu.recipe_lines({"spo": spo})
    assert "| seconds per step | 12 | not run |" in rows
    assert "| - probe | 1 | not run |" in rows
    assert "| probe, share of the step | 8.3% | not run |" in rows
    both = first_gpu.recipe_lines({"spo": spo, "grpo": first_gpu.summary([record(1), record(2)], skip=1)})
    assert "| - probe | 1 | - |" in both
    assert "| - old_log_prob | 1.5 | 3 |" in both
    assert "| memory allocated, reserved, GiB | 20.5, 24 | 20.5, 24 |" in both


@pytest.mark.parametrize("method", first_gpu.METHODS)
def test_both_recipes_accept_what_part_one_sets(method, tmp_path, monkeypatch):
    monkeypatch.setenv("SPO_RECIPES_DIR", str(ROOT))
    args = first_gpu.parse(["--data-dir", str(tmp_path / "it's"), "--model", str(tmp_path), "--gpus", "2"])
    recipe, given = first_gpu.checked(method, args)
    config = recipe.compose(given).config
    assert config.data.train_files == [f"{tmp_path}/it's/gsm8k_train.parquet"]
    assert (config.trainer.total_training_steps, config.trainer.n_gpus_per_node) == (10, 2)
    assert config.algorithm.adv_estimator == method
    args.overrides = ["no.such_key=1"]
    with pytest.raises(SystemExit, match="is not accepted"):
        first_gpu.checked(method, args)


def test_what_is_missing_is_said_before_anything_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SPO_RECIPES_DIR", str(ROOT))
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    with pytest.raises(SystemExit, match="is not empty"):
        first_gpu.main(["--output", str(full)])
    arguments = ["--part", "recipe", "--data-dir", str(tmp_path), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=r"gsm8k_train\.parquet.* is not there: make it with `spo-verl data prepare"):
        first_gpu.main(arguments)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="sees no GPU"):
        first_gpu.main(["--part", "shapes", "--output", str(tmp_path / "shapes")])
    monkeypatch.setattr(first_gpu, "find_spec", lambda name: None if name in ("vllm", "pydantic") else name)
    assert first_gpu.parts(first_gpu.parse([])) == ["shapes"]
    assert "vllm is not installed" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="needs pydantic: pip install pydantic"):
        first_gpu.run_shapes(first_gpu.parse([]))


def test_the_script_says_how_it_is_called():
    script = REPOSITORY / "benchmarks" / "first_gpu.sh"
    done = subprocess.run(
        [str(script), "--help"], cwd="/", env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--dry-run" in done.stdout
    assert Path(script).stat().st_mode & 0o111

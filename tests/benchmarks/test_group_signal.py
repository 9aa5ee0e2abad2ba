"""benchmarks/group_signal.py, against dumps worked out by hand and against verl's own advantages."""

import json
import uuid

import numpy as np
import pytest
import torch
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from benchmarks import group_signal
from benchmarks.group_signal import Signal, read_run, signal_of

# a: mean 1/2, deviations of 1/2. d: mean 1/4, deviations 3/4, -1/4, -1/4, -1/4. b and c say nothing.
BY_HAND = {"a": [1, 1, 0, 0], "b": [1, 1, 1, 1], "c": [0, 0, 0, 0], "d": [1, 0, 0, 0]}
EXPECTED = Signal(
    step=1,
    samples=16,
    degenerate=8 / 16,
    effective=(4 / 4 + 9 / 16 + 3 / 16) / 7,
    all=(4 / 4 + 9 / 16 + 3 / 16) / 15,
    reward=(7 - 16 * (7 / 16) ** 2) / 15,
)


def dump(folder, step, rewards_of_group, outputs=1):
    """A file as verl writes it; of several outputs of a session only the last has the reward."""
    keys, scores = [], []
    for group, rewards in rewards_of_group.items():
        for session, reward in enumerate(rewards):
            uid = uuid.uuid5(uuid.NAMESPACE_OID, group)
            keys += [f"{uid}_{session}_{output}" for output in range(outputs)]
            scores += [0.5] * (outputs - 1) + [float(reward)]
    texts = [""] * len(keys)
    PPOTrainer._write_generations(texts, texts, texts, scores, {"uid": keys}, str(folder), step)


def about(signal):
    return {key: pytest.approx(value, abs=1e-12) for key, value in vars(signal).items()}


def test_the_dump_by_hand(tmp_path):
    dump(tmp_path, 1, BY_HAND)
    assert [vars(one) for one in read_run(tmp_path)] == [about(EXPECTED)]


def test_of_several_outputs_of_a_session_the_last_counts(tmp_path):
    dump(tmp_path, 1, BY_HAND, outputs=3)
    assert [vars(one) for one in read_run(tmp_path)] == [about(EXPECTED)]


def test_steps_come_in_the_order_of_their_numbers(tmp_path):
    for step in (10, 9, 1):
        dump(tmp_path, step, {"a": [0, 1]} if step == 9 else {"a": [1, 1]})
    assert [(one.step, one.degenerate) for one in read_run(tmp_path)] == [(1, 1), (9, 0), (10, 1)]


def test_single_streams_have_rewards_and_no_groups(tmp_path):
    dump(tmp_path, 1, {name: [reward] for name, reward in zip("abcd", (1, 0, 0, 1), strict=True)})
    [one] = read_run(tmp_path)
    assert (one.degenerate, one.effective, one.all) == (None, None, None)
    assert one.reward == pytest.approx(1 / 3)


def test_a_response_that_is_left_alone_in_its_group_does_not_count_as_degenerate():
    one = signal_of(1, [[1.0], [0.0, 1.0], [1.0, 1.0]])
    assert (one.samples, one.degenerate) == (5, 0.5)
    assert one.effective == pytest.approx(0.5)


def test_rewards_that_differ_by_float32_rounding_are_equal():
    assert signal_of(1, [[0.9, float(np.float32(0.9))]]).degenerate == 1


@pytest.mark.parametrize("seed", range(5))
def test_advantages_are_those_of_verl_before_it_divides(seed):
    rng = np.random.default_rng(seed)
    reward_GK = (rng.random((64, 8)) < rng.beta(0.5, 0.5, size=(64, 1))).astype(np.float32)
    index = np.repeat(np.arange(64), 8)
    rewards = torch.tensor(reward_GK.reshape(-1, 1))
    advantage, _ = compute_grpo_outcome_advantage(
        rewards, torch.ones_like(rewards), index, norm_adv_by_std_in_grpo=False
    )
    advantage = advantage.numpy().ravel()
    dead = np.repeat(np.ptp(reward_GK, axis=1) == 0, 8)
    one = signal_of(1, reward_GK)
    assert one.degenerate == dead.mean() == (advantage == 0).mean()
    assert one.effective == pytest.approx(advantage[~dead].var(ddof=1), rel=1e-5)
    assert one.all == pytest.approx(advantage.var(ddof=1), rel=1e-5)


def test_the_command_prints_and_writes(tmp_path, capsys):
    dump(tmp_path, 1, BY_HAND)
    capsys.readouterr()  # verl says that it dumped
    group_signal.main([str(tmp_path), "--json", str(tmp_path / "table.json")])
    assert capsys.readouterr().out.splitlines()[1].split() == ["1", "16", "0.5000", "0.2500", "0.1167", "0.2625"]
    assert json.loads((tmp_path / "table.json").read_text()) == [about(EXPECTED)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rollout in it"),
        ('{"input": "x", "score": 1.0}\n', "line 1: no uid"),
        ('{"input": "x", "uid": "a_0_0", "score": null}\n', "line 1: score is 'None'"),
        ('{"input": "x", "uid": "a_0_0", "score": 1' + "0" * 400 + "}\n", "line 1: score is"),
        ('{"input": "x", "uid": "a_0_0", "score": true}\n', "line 1: score is 'True'"),
        ("[1, 2\n", "line 1: not readable JSON"),
    ],
)
def test_what_is_no_dump_is_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "1.jsonl").write_text(text)
    with pytest.raises(SystemExit, match=message):
        read_run(tmp_path)


def test_a_folder_without_dumps_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"trainer\.rollout_data_dir"):
        read_run(tmp_path / "absent")

"""The vectorised maths against one Python object per prompt, on random histories; no repeats in a batch."""

import numpy as np
import pytest

from spo_verl.core import (
    WeightIndex,
    draw,
    initial_evidence,
    retention,
    sampling_weights,
    update_evidence,
    value,
)

from .helpers import NaivePrompt, naive_race, naive_rejection

P, B, STEPS = 60, 12, 40


def start(seed):
    rng = np.random.default_rng(seed)
    trials = rng.integers(0, 9, P)
    successes = rng.binomial(trials, rng.random(P))
    alpha, beta = initial_evidence(successes, trials)
    naive = [NaivePrompt(0.5, 0.5) for _ in range(P)]
    for prompt, s, n in zip(naive, successes, trials, strict=True):
        if n > 0:
            prompt.alpha, prompt.beta = 8 * (s + 0.5) / (n + 1), 8 * (n - s + 0.5) / (n + 1)
    return rng, alpha, beta, naive


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_draw_score_update_over_a_history(seed, gamma):
    world, alpha, beta, naive = start(seed)
    rng, naive_rng = np.random.default_rng(seed), np.random.default_rng(seed)
    difficulty = world.random(P)
    for _ in range(STEPS):
        slot, _ = draw(sampling_weights(alpha, beta, gamma=gamma), B, rng)
        weights = [prompt.weight(gamma, 0.05) for prompt in naive]
        assert slot.tolist() == naive_race(weights, B, naive_rng)

        reward = (world.random(B) < difficulty[slot]).astype(float)
        divergence = world.exponential(0.01, B) * (world.random(B) < 0.8)
        baseline = value(alpha[slot], beta[slot])
        np.testing.assert_allclose(baseline, [naive[i].value() for i in slot], rtol=1e-12)

        alpha[slot], beta[slot] = update_evidence(alpha[slot], beta[slot], reward, retention(divergence))
        for i, r, d in zip(slot, reward, divergence, strict=True):
            naive[i].observe(r, d)
        np.testing.assert_allclose(alpha, [prompt.alpha for prompt in naive], rtol=1e-11)
        np.testing.assert_allclose(beta, [prompt.beta for prompt in naive], rtol=1e-11)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("block", [4, 64])
def test_index_draws_equal_a_walk_along_the_weights(seed, block):
    world = np.random.default_rng(seed)
    table = WeightIndex(world.random(P), block=block)
    rng = np.random.default_rng(seed)
    for _ in range(STEPS):
        naive_rng = np.random.default_rng(0)
        naive_rng.bit_generator.state = rng.bit_generator.state
        slot, share = table.draw(B, rng)
        weights = table.weight_P.tolist()
        assert slot.tolist() == naive_rejection(weights, B, naive_rng, block)
        np.testing.assert_allclose(share, [weights[i] / sum(weights) for i in slot], rtol=1e-12)
        table.update(slot, world.random(B))

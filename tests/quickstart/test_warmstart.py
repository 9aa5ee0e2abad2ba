"""The small model, its exact accuracy, and when the warm start stops."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from spo_verl.quickstart import warmstart
from spo_verl.quickstart.errors import QuickstartError
from spo_verl.quickstart.model import SPECIAL, ModelShape, build_model, build_tokenizer, save
from spo_verl.quickstart.prepare import prepare_model
from spo_verl.quickstart.settings import Settings
from spo_verl.quickstart.task import CHARACTERS, Problem, build_task
from spo_verl.quickstart.warmstart import (
    IGNORED,
    WarmStartSettings,
    answer_log_prob,
    encode,
    mean_by_level,
    practice,
    sampled_accuracy,
    template_frame,
    warm_start,
)

TINY = ModelShape(layers=1, width=16, mlp_width=16, heads=2, key_value_heads=1, head_dim=8)
TOKENIZER = build_tokenizer()
PROBLEMS = (Problem(1, "37+5=", 42), Problem(7, "9999+9999=", 19998), Problem(3, "8-8=", 0))


@pytest.fixture(scope="module")
def model():
    return build_model(TOKENIZER, TINY, seed=0).eval()


def test_vocabularies_of_model_and_tokenizer_are_equally_large(model) -> None:
    assert len(TOKENIZER) == len(SPECIAL) + len(CHARACTERS) == model.config.vocab_size == 19
    assert TOKENIZER("0123456789+-*=", add_special_tokens=False)["input_ids"] == list(range(5, 19))
    assert model.generation_config.eos_token_id == TOKENIZER.eos_token_id


def test_the_default_model_is_small_and_seeded() -> None:
    first, again, other = (build_model(TOKENIZER, ModelShape(), seed=seed) for seed in (0, 0, 1))
    assert 150_000 < sum(parameter.numel() for parameter in first.parameters()) < 250_000
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert all(parameter.dtype == torch.float32 for parameter in first.parameters())


def test_what_was_saved_is_what_transformers_loads(model, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    save(model, TOKENIZER, tmp_path)
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded).__name__ == "Qwen3ForCausalLM"
    tokens, _ = encode(PROBLEMS, tokenizer)
    assert torch.allclose(loaded(input_ids=tokens).logits, model(input_ids=tokens).logits, atol=1e-6)
    assert tokenizer.chat_template == TOKENIZER.chat_template
    assert tokenizer.eos_token_id == TOKENIZER.eos_token_id


def test_encoding_is_the_chat_template_then_the_response() -> None:
    tokens, labels = encode(PROBLEMS, TOKENIZER)
    assert template_frame(TOKENIZER) == ([3], [4])
    for row, problem in enumerate(PROBLEMS):
        messages = [{"role": "user", "content": problem.question}]
        prompt = TOKENIZER.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        text = prompt + problem.response + TOKENIZER.eos_token
        expected = TOKENIZER(text, add_special_tokens=False)["input_ids"]
        assert tokens[row, : len(expected)].tolist() == expected
        assert set(tokens[row, len(expected) :].tolist()) <= {TOKENIZER.pad_token_id}
        answer = len(problem.response) + 1
        assert (labels[row] != IGNORED).nonzero().flatten().tolist() == list(
            range(len(expected) - answer, len(expected))
        )
        assert labels[row, len(expected) - 1] == TOKENIZER.eos_token_id


def test_log_prob_of_an_answer_is_the_sum_over_its_tokens(model) -> None:
    tokens, labels = encode(PROBLEMS, TOKENIZER)
    batched = answer_log_prob(model, tokens, labels)
    for row, problem in enumerate(PROBLEMS):
        prompt = [3, *TOKENIZER(problem.question, add_special_tokens=False)["input_ids"], 4]
        answer = [*TOKENIZER(problem.response, add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]
        total = 0.0
        for position, token in enumerate(answer):  # one token at a time, without padding or batch
            context = torch.tensor([prompt + answer[:position]])
            total += torch.log_softmax(model(input_ids=context).logits[0, -1], -1)[token].item()
        assert batched[row].item() == pytest.approx(total, abs=1e-4)


def test_accuracy_of_a_model_without_knowledge() -> None:
    # All logits equal: each of the 19 tokens has probability 1/19, so an answer of k digits and its end token
    # has (1/19)^(k+1): 2 digits (1/19)^3, 5 digits (1/19)^6, 1 digit (1/19)^2.
    class Ignorant:
        def __call__(self, input_ids: torch.Tensor):
            self.logits = torch.zeros(*input_ids.shape, 19)
            return self

    accuracy_B = sampled_accuracy(Ignorant(), TOKENIZER, PROBLEMS, batch_size=2)
    assert accuracy_B == pytest.approx([19.0**-3, 19.0**-6, 19.0**-2], rel=1e-5)


def test_levels_are_averaged_apart() -> None:
    # Two problems of each level; the second of level k is right with probability k / 10.
    problems = [Problem(level, "", 0) for level in range(1, 9) for _ in range(2)]
    accuracy_B = np.array([value for level in range(1, 9) for value in (0.0, level / 10)])
    assert mean_by_level(accuracy_B, problems) == pytest.approx([level / 20 for level in range(1, 9)])


def test_practice_never_uses_a_reserved_question() -> None:
    rng = np.random.default_rng(0)
    # Half of all products are reserved; unreserved draws would contain many of them.
    reserved = frozenset(f"{a}*{b}=" for a in range(10, 100) for b in range(2, 6))
    drawn = practice(rng, 2000, reserved)
    assert len(drawn) == 2000
    assert not {problem.question for problem in drawn} & reserved
    assert {problem.level for problem in drawn} == set(range(1, 9))
    assert any(problem.level == 6 for problem in drawn)


def short(**changes: float) -> WarmStartSettings:
    return dataclasses.replace(WarmStartSettings(batch_size=8, check_every=2, max_steps=6, ramp_steps=1), **changes)


def test_it_stops_at_the_target_and_at_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    task = build_task(train=8, held_out=8, seed=0, probe=8)
    script = iter([0.1, 0.2, 0.3])
    monkeypatch.setattr(warmstart, "sampled_accuracy", lambda *_: np.full(8, next(script)))

    def run(settings: WarmStartSettings):
        nonlocal script
        script = iter([0.1, 0.2, 0.3])
        model = build_model(TOKENIZER, TINY, seed=0)
        return warm_start(model, TOKENIZER, probe=task.probe, reserved=task.reserved, settings=settings, seed=0)

    reached = run(short(target=0.15))
    assert (reached.steps, reached.accuracy, reached.reached) == (4, pytest.approx(0.2), True)
    out_of_steps = run(short(target=0.9))
    assert (out_of_steps.steps, out_of_steps.reached) == (6, False)
    out_of_time = run(short(target=0.9, max_seconds=0.0))
    assert (out_of_time.steps, out_of_time.reached) == (2, False)


def test_training_lowers_the_loss_and_is_repeatable() -> None:
    task = build_task(train=8, held_out=8, seed=0, probe=64)
    results = []
    for _ in range(2):
        model = build_model(TOKENIZER, TINY, seed=0)
        tokens, labels = encode(task.probe, TOKENIZER)
        before = answer_log_prob(model, tokens, labels).mean().item()
        settings = short(max_steps=30, check_every=30, learning_rate=5e-3, target=0.9)
        warm_start(model, TOKENIZER, probe=task.probe, reserved=task.reserved, settings=settings, seed=0)
        results.append(answer_log_prob(model, tokens, labels).mean().item())
    assert results[0] > before + 1.0
    assert results[0] == pytest.approx(results[1], abs=1e-3)


def test_a_warm_start_is_cached_by_its_inputs(tmp_path: Path) -> None:
    task = build_task(train=8, held_out=8, seed=0, probe=8)
    settings = Settings(shape=TINY, warm_start=short(max_steps=2, floor=0.0))
    said: list[str] = []
    first, report = prepare_model(settings, task, tmp_path, said.append)
    assert not any("reusing" in line for line in said)
    second, again = prepare_model(settings, task, tmp_path, said.append)
    assert (first, report) == (second, again)
    assert "reusing" in said[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [first.name]
    assert json.loads((first / "warm_start.json").read_text())["report"]["steps"] == 2
    changes = (
        dataclasses.replace(settings, seed=1),
        dataclasses.replace(settings, warm_start=short(max_steps=3, floor=0.0)),
        dataclasses.replace(settings, shape=dataclasses.replace(TINY, layers=2)),
    )
    others = {prepare_model(change, task, tmp_path, said.append)[0] for change in changes}
    assert len(others | {first}) == 4
    # The length of the training does not matter to the model it starts from.
    assert prepare_model(dataclasses.replace(settings, steps=7), task, tmp_path, said.append)[0] == first


def test_a_warm_start_that_learned_nothing_is_an_error_and_not_cached(tmp_path: Path) -> None:
    task = build_task(train=8, held_out=8, seed=0, probe=8)
    settings = Settings(shape=TINY, warm_start=short(max_steps=2, floor=0.5))
    with pytest.raises(QuickstartError, match="--warm-start-seconds"):
        prepare_model(settings, task, tmp_path, lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_a_warm_start_that_outlasts_the_call_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    settings = Settings(warm_start=WarmStartSettings(target=2.0, max_steps=1000, check_every=1, batch_size=8))
    task = build_task(train=16, held_out=16, seed=0, probe=16)
    with pytest.raises(QuickstartError, match=r"the time of this call \(--time-limit\) ended in the warm start"):
        prepare_model(settings, task, tmp_path, lambda line: None, seconds=0.2)
    assert list(tmp_path.iterdir()) == []

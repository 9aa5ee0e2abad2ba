"""The small model, its exact accuracy, and when the warm start stops."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from spo_verl.launching.limits import OutOfTime, RunError
from spo_verl.small import prepare, warmstart
from spo_verl.small.launches import Settings
from spo_verl.small.model import SPECIAL, ModelShape, build_model, build_tokenizer, save
from spo_verl.small.prepare import prepare_model, read_report
from spo_verl.small.task import CHARACTERS, Problem, build_task
from spo_verl.small.warmstart import (
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

pytestmark = pytest.mark.long

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
    # Too late is only late enough with an accuracy that rewards can build on.
    out_of_time = run(short(target=0.9, max_seconds=0.0, floor=0.15))
    assert (out_of_time.steps, out_of_time.accuracy, out_of_time.reached) == (4, pytest.approx(0.2), False)


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

    def prepared(wanted: Settings):
        return prepare_model(wanted, task, tmp_path, said.append, partial=tmp_path / "partial")

    first, report = prepared(settings)
    assert not any("reusing" in line for line in said)
    second, again = prepared(settings)
    assert (first, report) == (second, again)
    assert "reusing" in said[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [first.name]
    assert json.loads((first / "warm_start.json").read_text())["report"]["steps"] == 2
    changes = (
        dataclasses.replace(settings, seed=1),
        dataclasses.replace(settings, warm_start=short(max_steps=3, floor=0.0)),
        dataclasses.replace(settings, shape=dataclasses.replace(TINY, layers=2)),
    )
    others = {prepared(change)[0] for change in changes}
    assert len(others | {first}) == 4
    # The length of the training does not matter to the model it starts from.
    assert prepared(dataclasses.replace(settings, steps=7))[0] == first


def test_a_warm_start_that_learned_nothing_is_an_error_and_not_cached(tmp_path: Path) -> None:
    task = build_task(train=8, held_out=8, seed=0, probe=8)
    settings = Settings(shape=TINY, warm_start=short(max_steps=2, floor=0.5))
    with pytest.raises(RunError, match=r"too low to learn from rewards \(at least 0.5\); take another --seed"):
        prepare_model(settings, task, tmp_path, lambda line: None, partial=tmp_path / "partial")
    assert list(tmp_path.iterdir()) == []


def test_a_warm_start_that_outlasts_its_calls_is_the_one_of_a_single_call(tmp_path: Path) -> None:
    settings = Settings(shape=TINY, warm_start=short(max_steps=8, floor=0.0, target=1.0))
    task = build_task(train=16, held_out=16, seed=0, probe=16)
    partial, said = tmp_path / "partial", []
    for steps in (2, 4, 6):
        with pytest.raises(OutOfTime, match=f"in the warm start, after {steps} steps at accuracy 0.*They are kept"):
            prepare_model(settings, task, tmp_path, said.append, partial=partial, seconds=0.0)
        assert read_report(partial).steps == steps
        # What there is can be evaluated like the model that comes of it.
        AutoModelForCausalLM.from_pretrained(partial)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["partial"]
    entry, report = prepare_model(settings, task, tmp_path, said.append, partial=partial)
    assert (report.steps, partial.exists()) == (8, False)
    whole, other = prepare_model(settings, task, tmp_path / "whole", said.append, partial=partial)
    assert report.accuracy == pytest.approx(other.accuracy, rel=1e-5)
    parts = AutoModelForCausalLM.from_pretrained(entry).state_dict()
    for name, weight in AutoModelForCausalLM.from_pretrained(whole).state_dict().items():
        assert torch.allclose(parts[name], weight, atol=1e-6), name


def test_a_warm_start_that_is_killed_has_lost_half_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(shape=TINY, warm_start=short(max_steps=6, floor=0.0, target=1.0))
    task = build_task(train=16, held_out=16, seed=0, probe=16)
    monkeypatch.setattr(prepare, "KEEP_EVERY_S", -1.0)
    monkeypatch.setattr(prepare, "SHOWN_EVERY", 4)

    def killed(line: str) -> None:
        if "step     4" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_model(settings, task, tmp_path, killed, partial=tmp_path / "partial")
    assert read_report(tmp_path / "partial").steps == 2
    assert torch.load(tmp_path / "partial" / "state.pt", weights_only=False)["step"] == 2
    # Of another version of the quickstart nothing is taken.
    monkeypatch.setattr(prepare, "FORMAT", prepare.FORMAT + 1)
    with pytest.raises(OutOfTime, match="after 2 steps"):
        prepare_model(settings, task, tmp_path, lambda line: None, partial=tmp_path / "partial", seconds=0.0)


@pytest.mark.parametrize("place", ["save", "write_json"])
def test_a_kill_while_the_model_is_written_leaves_nothing_but_what_the_next_call_uses(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(shape=TINY, warm_start=short(max_steps=2, floor=0.0))
    task = build_task(train=8, held_out=8, seed=0, probe=8)
    partial, stock = tmp_path / "partial", getattr(prepare, place)

    def killed(*given: object) -> None:
        stock(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as once:
        once.setattr(prepare, place, killed)
        with pytest.raises(KeyboardInterrupt):
            prepare_model(settings, task, tmp_path, lambda line: None, partial=partial)
    assert [path.name for path in tmp_path.iterdir()] == ["partial"]
    entry, report = prepare_model(settings, task, tmp_path, lambda line: None, partial=partial)
    assert report.steps == 2
    assert [path.name for path in tmp_path.iterdir()] == [entry.name]
    assert not (entry / "state.pt").exists()

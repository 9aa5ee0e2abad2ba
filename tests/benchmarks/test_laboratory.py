"""The laboratory: its model against the quickstart's, its methods by hand, its ledger against interruptions."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.laboratory import ledger, model, plan, readout, running, summary, tasks, training
from benchmarks.laboratory.__main__ import main
from benchmarks.laboratory.ledger import Cell
from benchmarks.laboratory.methods import METHODS, WINDOW, Batch, Knowledge, advantages, raw_advantages
from spo_verl import core
from spo_verl.small import task as ladder
from spo_verl.small.model import ModelShape, build_model, build_tokenizer
from spo_verl.tracker import PromptSources, Tracker


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def some_rows(rows=6, seed=0):
    kind, rng = tasks.KINDS["ladder"], np.random.default_rng(seed)
    problems = [kind.draw(index % 8 + 1, rng) for index in range(rows)]
    return tasks.tensors(kind, problems, "cpu")


def test_the_model_is_the_quickstart_s():
    reference = build_model(build_tokenizer(), ModelShape(), seed=3)
    flat = model.flattened(reference)[None]
    assert flat.shape == (1, model.PARAMETERS)
    problems = some_rows()
    found = model.log_probs(model.unflatten(flat), problems.prompt_PL[None], problems.answer_PT[None])[0]
    for prompt, answer, row in zip(problems.prompt_PL, problems.answer_PT, found, strict=True):
        prompt, answer = prompt[prompt != tasks.PADDING], answer[answer != tasks.PADDING]
        logits = reference(input_ids=torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1].double()
        logits[:, tasks.PADDING] = -torch.inf
        wanted = logits.log_softmax(-1)[torch.arange(len(answer)), answer]
        torch.testing.assert_close(row[: len(answer)].double(), wanted, atol=1e-4, rtol=1e-4)
        assert not row[len(answer) :].any()


def test_sampling_with_a_cache_follows_the_same_probabilities_in_each_model():
    flat = model.fresh([1, 2], "cpu")
    weights, problems = model.unflatten(flat), some_rows()
    prompt = torch.stack([problems.prompt_PL, problems.prompt_PL])
    uniform = torch.rand((2, 6, 8), generator=torch.Generator().manual_seed(0))
    response = model.sample(weights, prompt, uniform)
    tokens = torch.cat([prompt, response], -1)
    logits = model.forward(weights, tokens[..., :-1], *model.attention(tokens[..., :-1]))[:, :, 11:]
    total = logits.softmax(-1).cumsum(-1)
    wanted = (total <= uniform[..., None]).sum(-1)
    inside = response != tasks.PADDING
    assert inside[..., 0].all()
    assert torch.equal(response[inside], wanted[inside])
    assert not torch.equal(response[0], response[1])
    ended = (response == tasks.STOP).cumsum(-1) - (response == tasks.STOP).long() > 0
    assert torch.equal(inside, ~ended)


def test_the_optimiser_is_torch_s_with_clipping_for_each_model():
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn((2, 5), generator=generator)
    rates = [1e-2, 3e-2]
    others = [torch.nn.Parameter(row.clone()) for row in flat]
    optimizers = [
        torch.optim.AdamW([other], lr=rate, weight_decay=0.01) for other, rate in zip(others, rates, strict=True)
    ]
    mine = model.AdamW(flat, torch.tensor(rates))
    for scale in (0.1, 5.0, 1.0):
        gradient = scale * torch.randn((2, 5), generator=generator)
        mine.step(flat, gradient)
        for other, optimizer, row in zip(others, optimizers, gradient, strict=True):
            other.grad = row.clone()
            torch.nn.utils.clip_grad_norm_([other], 1.0)
            optimizer.step()
    torch.testing.assert_close(flat, torch.stack([other.detach() for other in others]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", tasks.KINDS)
def test_practice_is_right_and_other_responses_are_wrong(name):
    kind, rng = tasks.KINDS[name], np.random.default_rng(0)
    problems = [kind.draw(index % 8 + 1, rng) for index in range(160)]
    number = tasks.tensors(kind, problems, "cpu").number_PN
    texts = [kind.practice(problem, rng) for problem in problems]

    def graded(changed):
        token = torch.full((len(changed), kind.most_tokens), tasks.PADDING)
        for row, text in enumerate(changed):
            ids = [*tasks.encoded(text), tasks.STOP][: kind.most_tokens]
            token[row, : len(ids)] = torch.tensor(ids)
        return kind.grade(token, number).numpy()

    assert graded(texts).all()
    bumped = [text[:-1] + str((int(text[-1]) + 1) % 10) for text in texts]
    assert not graded(bumped).any()
    assert not graded([text + "+" for text in texts]).any()
    assert not graded(["" for _ in texts]).any()
    unfinished = torch.full((160, kind.most_tokens), tasks.ZERO + 1)
    assert not kind.grade(unfinished, number).any()


def test_terms_by_hand():
    kind = tasks.KINDS["terms"]
    # 37 = a + b with a ending in 4: 34+3, 4+33, written last digit first; leading zeros and other digits are wrong.
    cases = {"43+3": True, "4+33": True, "40+33": False, "3+43": False, "43+3=": False, "43-3": False, "43++3": False}
    token = torch.full((len(cases), kind.most_tokens), tasks.PADDING)
    for row, text in enumerate(cases):
        ids = [*tasks.encoded(text), tasks.STOP]
        token[row, : len(ids)] = torch.tensor(ids)
    number = torch.tensor([[37, 4, 1, 0]]).repeat(len(cases), 1)
    assert kind.grade(token, number).tolist() == list(cases.values())


def batch_of(value, calibrated=None):
    value = np.asarray(value)
    calibrated = value if calibrated is None else np.asarray(calibrated)
    return Batch(np.arange(len(value)), value, calibrated, np.ones(len(value)), None, [], None)


def test_raw_advantages_by_hand():
    reward = np.array([1.0, 0, 0, 0, 1, 1, 1, 0])
    batch = batch_of([0.5, 0.5, 0.25, 0.25, 0.05, 0.8, 0.8, 0.8], [0.6] * 8)
    oracle = np.full(8, 0.3)

    def raw(name):
        return raw_advantages(METHODS[name], reward, batch, oracle)

    np.testing.assert_allclose(raw("grpo"), reward - 0.5)  # one group of eight, half of it right
    np.testing.assert_allclose(raw("rloo"), reward - (4 - reward) / 7)
    np.testing.assert_allclose(raw("no_baseline"), reward)
    np.testing.assert_allclose(raw("spo"), [0.5, -0.5, -0.25, -0.25, 0.95, 0.2, 0.2, -0.8])
    np.testing.assert_allclose(raw("spo_calibrated"), reward - 0.6)
    np.testing.assert_allclose(raw("oracle"), reward - 0.3)
    # divided by max(v, 0.1): 0.5, 0.5, 0.25, 0.25, 0.1, 0.8, 0.8, 0.8
    np.testing.assert_allclose(raw("spo_maxrl"), [1, -1, -1, -1, 9.5, 0.25, 0.25, -1])


def test_normalisation_by_hand():
    reward, length = np.array([1.0, 0, 0, 0, 0, 0, 0, 0]), np.array([3, 1, 1, 1, 1, 1, 1, 1])
    batch = batch_of(np.zeros(8))
    # Group: mean 1/8, unbiased std sqrt(1/8) = 0.353553: 0.875 / 0.353553 = 2.474874.
    grpo = advantages(METHODS["grpo"], reward, length, batch)
    np.testing.assert_allclose(grpo, [2.474874, *[-0.353553] * 7], atol=1e-5)
    np.testing.assert_allclose(advantages(METHODS["batch_whitened"], reward, length, batch), grpo, atol=1e-5)
    # Token measure: mean 3/10, variance (3 * 0.49 + 7 * 0.09) / 9 = 0.233333.
    token = advantages(METHODS["reinforce_pp"], reward, length, batch)
    np.testing.assert_allclose(token, np.array([0.7, *[-0.3] * 7]) / 0.4830459, rtol=1e-6)
    same = advantages(METHODS["grpo"], np.ones(8), length, batch)
    np.testing.assert_array_equal(same, np.zeros(8))


def test_losses_by_hand():
    ratio = torch.tensor([[[0.2, 0.5, 1.0, 1.5, 6.0]]])
    one, ten = torch.ones(1, 1, 1), torch.full((1, 1, 1), 10.0)
    no, yes = torch.zeros(1, 1, 1, dtype=torch.bool), torch.ones(1, 1, 1, dtype=torch.bool)
    close = torch.testing.assert_close
    close(training.token_loss(no, ten, ratio, one)[0, 0], torch.tensor([-0.2, -0.5, -1.0, -1.28, -1.28]))
    close(training.token_loss(no, ten, ratio, -one)[0, 0], torch.tensor([0.8, 0.8, 1.0, 1.5, 6.0]))
    close(training.token_loss(no, 2 * one, ratio, -one)[0, 0], torch.tensor([0.8, 0.8, 1.0, 1.5, 2.0]))
    close(training.token_loss(yes, ten, ratio, one)[0, 0], torch.tensor([0.0, -0.5, -1.0, -1.5, 0.0]))
    log_prob = -torch.arange(1.0, 13.0)[None].repeat(2, 1)
    # Twelve tokens: the two least likely of a failure, all of a success; nothing of the padding.
    weight = training.token_weights(
        METHODS["spo_negative_tokens"], log_prob, torch.tensor([12, 12]), torch.tensor([-1.0, 1.0])
    )
    assert weight[0].tolist() == [0.0] * 10 + [1.0, 1.0]
    assert weight[1].tolist() == [1.0] * 12
    short = training.token_weights(METHODS["spo"], log_prob[:1], torch.tensor([3]), torch.tensor([-1.0]))
    assert short[0].tolist() == [1.0] * 3 + [0.0] * 9


def test_the_read_out_is_fitted_on_earlier_steps_only():
    level = np.arange(64) % 8 + 1
    runs = []
    for last in (0.0, 1.0):
        one = Knowledge(METHODS["spo_calibrated"], level, 16, seed=1)
        for step in range(3):
            batch = one.draw()
            reward = np.full(16, last) if step == 2 else (np.arange(16) % 2).astype(float)
            token, log_prob = np.full((16, 2), 7), np.full((16, 2), -0.5)
            one.learn(batch, reward, np.zeros(16), token, log_prob, np.full(16, 2))
        runs.append((batch, one.draw()))
    np.testing.assert_array_equal(runs[0][0].calibrated_B, runs[1][0].calibrated_B)
    assert (runs[0][1].calibrated_B < runs[1][1].calibrated_B.min()).all()


def test_its_read_out_is_that_of_the_tracker():
    """So that what the laboratory measures of ``spo.value.readout=calibrated`` holds for the tracker's."""
    level, rng, size = np.arange(96) % 8 + 1, np.random.default_rng(2), 16
    one = Knowledge(METHODS["spo_calibrated"], level, size, seed=1)
    key_P = one.tracker.keys(np.arange(96))
    settings = replace(one.tracker.settings, readout="calibrated", window=WINDOW * size, references=())
    sources = PromptSources.of([f"level {number}" for number in level])
    tracker = Tracker.create(key_P, settings, sources=sources)
    for step in range(3 * WINDOW):
        batch = one.draw()
        frozen = tracker.dispatch(batch.uids, batch.slot_B, step)
        np.testing.assert_allclose(frozen.value_B, batch.calibrated_B, atol=1e-9)
        reward = (rng.random(size) < 1 / level[batch.slot_B]).astype(float)
        token, log_prob = np.full((size, 2), 7), np.full((size, 2), -0.5)
        one.learn(batch, reward, np.full(size, 0.02), token, log_prob, np.full(size, 2))
        tracker.observe(batch.uids, np.zeros(size, dtype=np.int64), reward, np.full(size, 0.02))
        tracker.settle(batch.uids)
        features = one._features(np.arange(96), *_value_and_mass(one.tracker))
        np.testing.assert_allclose(tracker.values(), core.calibrated_value(features, one.coefficient_F), atol=1e-9)
    assert np.abs(tracker.values() - one.tracker.values()).max() > 0.1


def _value_and_mass(tracker):
    alpha_P, beta_P = tracker.evidence()
    return alpha_P / (alpha_P + beta_P), alpha_P + beta_P


def test_errors_of_values_take_out_the_sampling_noise():
    rng = np.random.default_rng(0)
    rate, value = rng.uniform(size=40000), 0.5
    found = rng.binomial(32, rate) / 32
    exact, sampled = training.Errors(), training.Errors()
    exact.add(np.full(40000, value), rate, None)
    sampled.add(np.full(40000, value), found, 32)
    assert exact.result()["mse"] == pytest.approx(1 / 12, abs=2e-3)
    assert sampled.result()["mse"] == pytest.approx(exact.result()["mse"], abs=1.5e-3)
    assert sampled.result()["bias"] == pytest.approx(exact.result()["bias"], abs=2e-3)


def test_other_read_outs_on_recorded_visits(tmp_path):
    rng = np.random.default_rng(0)
    level = np.arange(64) % 8 + 1
    steps = []
    for _ in range(12):
        rate = np.where(level > 4, 0.9, 0.2)
        reward = (rng.uniform(size=64) < rate).astype(float)
        half, one = np.full(64, 0.5), np.ones(64)
        steps.append(np.stack([np.arange(64), level, reward, half, half, one, one, rate]))
    question = np.array([f"{slot}+{slot}=" for slot in range(64)])
    np.savez(tmp_path / "visits.npz", visits=np.float32(steps), question=question)
    visits = readout.Visits(tmp_path / "visits.npz")
    # The raw value is off by -0.4 or +0.3; eight responses have p (1 - p) / 8.
    assert visits.error(visits.columns["value"]) == pytest.approx(((0.16 + 0.09) / 2, -0.05), abs=1e-6)
    assert visits.group() == pytest.approx((0.09 + 0.16) / 16, abs=1e-6)
    found = visits.calibrated(readout.SETS["all"], 8, 5.0)
    assert visits.error(found)[0] < 0.02
    np.testing.assert_array_equal(found[0], 0.5)
    changed = np.float32(steps)
    changed[6:, 2] = 1.0
    np.savez(tmp_path / "changed.npz", visits=changed, question=question)
    later = readout.Visits(tmp_path / "changed.npz").calibrated(readout.SETS["all"], 8, 5.0)
    np.testing.assert_array_equal(found[:7], later[:7])  # outcomes of a step reach the read-outs after it
    assert (later[7] > found[7]).all()
    assert len(readout.compare(tmp_path / "visits.npz")) == 20


@pytest.mark.parametrize(
    ("question", "digits", "carries"),
    # 37 + 5, 99 + 1, 20 - 5, 200 - 5, 12 * 9, 11 + 11 - 20: the last digit is written first.
    [("73+5=", 3, 1), ("99+1=", 3, 2), ("02-5=", 3, 1), ("002-5=", 4, 2), ("21*9=", 3, 2), ("11+11-02=", 6, 0)],
)
def test_carries_by_hand(question, digits, carries):
    assert readout.difficulty(question) == (digits, carries)


def warm(folder):
    torch.save({"flat": model.fresh([0, 1, 2], "cpu")}, training.checkpoint("ladder", folder))


@pytest.fixture
def few(monkeypatch):
    """Small sets of problems, so that an evaluation takes milliseconds."""
    original = tasks.tensors
    monkeypatch.setattr(tasks, "tensors", lambda kind, problems, device: original(kind, problems[:64], device))


def test_the_same_seed_gives_the_same_result_next_to_other_cells_too(tmp_path, few, monkeypatch):
    warm(tmp_path)
    names = ("spo_calibrated_draws", "dapo", "bspo", "plus_plus", "spo_offline", "spo_neyman")
    cells = [Cell("ladder", name, 1, 16, 2, 1e-3, 64) for name in names]
    monkeypatch.setattr(training, "RECORDED", {(names[0], 1, 1e-3)})
    together = training.Stack(cells, tmp_path, "cpu").run()
    alone = training.Stack(cells[:1], tmp_path, "cpu").run()[0]
    assert together[0]["curve"] == alone["curve"]
    assert together[0]["errors"]["raw"] == pytest.approx(alone["errors"]["raw"], rel=1e-4)
    visits = np.load(tmp_path / "visits_ladder_b16_seed1.npz")["visits"]
    assert visits.shape == (2, len(training.VISIT), 16)
    raw = visits[:, 3] - visits[:, 7]
    assert np.mean(raw**2) == pytest.approx(alone["errors"]["raw"]["mse"], rel=1e-4)
    trajectories = {name: result["trajectories"] for name, result in zip(names, together, strict=True)}
    assert trajectories["spo_offline"] == 8 * 64 + 32
    assert trajectories["dapo"] == 2 * 16 * 10  # nothing is ever right: all rounds are used up
    assert trajectories["bspo"] == trajectories["plus_plus"] == 32
    assert all(np.isfinite(result["curve"][-1][3]) for result in together)


def test_a_killed_run_continues_where_it_was(tmp_path):
    path = tmp_path / "ledger.jsonl"
    cells = plan.cells(("grpo", "spo"), (1, 2))
    ledger.append(path, cells[1], {"curve": []})
    with path.open("a") as file:
        file.write('{"key": "ladder/torn')
    assert ledger.missing([*cells, cells[0]], path) == [cells[0], *cells[2:]]
    ledger.append(path, cells[0], {"curve": [1]})
    ledger.append(path, cells[0], {"curve": [2]})
    assert [(entry["key"], entry["curve"]) for entry in ledger.read(path)] == [
        (cells[1].key, []),
        (cells[0].key, [1]),
    ]
    assert ledger.missing(cells, path) == cells[2:]


def test_a_run_that_is_done_starts_no_worker(tmp_path, capsys):
    path = tmp_path / "ledger.jsonl"
    for block in plan.smoke():
        for cell in block:
            ledger.append(path, cell, {"curve": []})
    warm(tmp_path)
    assert running.run(running.Options("smoke", path, 5.0, "cpu", 1, 4)) == 0
    assert "every cell of the plan is in the ledger" in capsys.readouterr().out


@pytest.mark.parametrize("name", plan.PLANS)
def test_the_plan_s_stacks_hold_every_cell_once_and_only_like_ones(name):
    blocks = plan.PLANS[name](finished_rates({}))
    stacks = plan.stacks(blocks, 32)
    assert sum(map(len, stacks)) == sum(map(len, blocks)) == len({cell for stack in stacks for cell in stack})
    for stack in stacks:
        assert len(stack) <= 32
        assert len({(cell.task, cell.batch, cell.steps, cell.train) for cell in stack}) == 1
        assert len({METHODS[cell.method].dynamic for cell in stack}) == 1


def test_the_most_important_cells_come_first():
    assert {cell.method for cell in plan.stacks(plan.gpu(), 32)[0]} == set(plan.MAIN)
    assert not set(plan.SEEDS) & set(plan.TUNING_SEEDS)


def finished_rates(chosen, otherwise=1e-4):
    """Entries of the plan ``rates`` in which these methods are best at these rates."""
    return [
        {**vars(cell), "key": cell.key, "curve": [(0, 0, 0, 0.4), (240, 15360, 0, 0.5 if best else 0.4)]}
        for block in plan.rates()
        for cell in block
        for best in [cell.rate == chosen.get(cell.method, otherwise)]
    ]


def test_figures_are_run_at_the_rate_that_the_tuning_seeds_chose():
    finished = finished_rates({"spo": 3e-5, "grpo": 1e-5})
    *own, last = plan.own_rates(finished)
    for block in own:
        rates = {cell.method: cell.rate for cell in block}
        assert rates == {name: {"spo": 3e-5, "grpo": 1e-5}.get(name, 1e-4) for name in plan.AT_OWN_RATE}
        assert len(block) == len(plan.AT_OWN_RATE) * len(plan.SEEDS)
        assert sorted({cell.seed for cell in block}) == sorted(plan.SEEDS)
    assert {(cell.task, cell.rate) for cell in last} == {("quickstart", plan.ONE_RATE)}
    assert "spo" not in {cell.method for cell in last}, "its own rate is the same: once is enough"
    # Cells of another length choose nothing for these.
    better = {"steps": 10, "curve": [(0, 0, 0, 0.9), (10, 640, 0, 0.9)]}
    short = [{**entry, **better} for entry in finished_rates({}) if entry["rate"] == 3e-4]
    assert plan.own_rates([*finished, *short]) == [*own, last]


def test_a_choice_among_some_of_the_rates_is_refused(tmp_path, capsys):
    finished = finished_rates({})
    with pytest.raises(SystemExit, match="1 cells of the plan rates are not in the ledger, such as terms/spo/"):
        plan.own_rates([entry for entry in finished if entry["key"] != "terms/spo/b64/s240/lr3e-05/p1024/seed102"])
    with pytest.raises(SystemExit):
        main(["run", "--plan", "own_rates", "--ledger", str(tmp_path)])
    assert "is a folder" in capsys.readouterr().err


def test_the_task_quickstart_has_the_quickstart_s_problems():
    mine, wanted = tasks.build("quickstart", 2, 64), ladder.build_task(train=64, held_out=512, seed=2)
    for name in ("train", "held_out", "probe"):
        pairs = [(one.level, one.question, one.numbers) for one in getattr(mine, name)]
        assert pairs == [(one.level, one.question, (one.answer,)) for one in getattr(wanted, name)]


def test_a_method_says_how_many_outcomes_are_fitted():
    assert METHODS["lean"].outcomes == 2048
    one = Knowledge(replace(METHODS["lean"], outcomes=40), np.arange(64) % 8 + 1, 16, seed=1)
    for step in range(5):
        batch, reward = one.draw(), (np.arange(16) < step).astype(float)
        token, log_prob = np.full((16, 2), 7), np.full((16, 2), -0.5)
        one.learn(batch, reward, np.zeros(16), token, log_prob, np.full(16, 2))
    # 40 outcomes are part of three batches of 16: those of the steps 2, 3 and 4.
    assert [reward.sum() for _, reward in one.outcomes] == [2, 3, 4]


def entry(method, seed, accuracy, offline=0, **other):
    cell = Cell("ladder", method, seed, 64, 20)
    curve = [[step, offline + 64 * step, 300 * step, value] for step, value in zip((0, 10, 20), accuracy, strict=True)]
    errors = {"raw": {"mse": 0.03, "bias": 0.0}, "calibrated": {"mse": 0.02, "bias": 0.01}} if method == "spo" else {}
    spent = {"trajectories": 1280, "tokens": 6000, "signal": 0.9, "device": "cpu"}
    return {
        **cell.__dict__,
        **spent,
        "key": cell.key,
        "curve": curve,
        "errors": errors,
        "group_of_eight": 0.02,
        **other,
    }


def test_areas_by_hand():
    one = entry("spo", 1, (0.2, 0.4, 0.6))
    assert summary.area_by_steps(one) == pytest.approx(0.4)
    assert summary.area_by_trajectories(one) == pytest.approx(0.4)
    # Half of the budget of 1,280 goes into the offline pass: 0.2 for 640, then the first half of the curve.
    late = entry("spo", 1, (0.2, 0.4, 0.6), offline=640)
    assert summary.area_by_trajectories(late) == pytest.approx(0.5 * 0.2 + 0.5 * 0.3)
    assert summary.trajectories_to(late, 0.5) == pytest.approx(640 + 960)
    assert summary.trajectories_to(one, 0.9) is None


def test_paired_intervals_by_hand():
    mine, other = {1: 0.3, 2: 0.5, 3: 0.4, 9: 5.0}, {1: 0.2, 2: 0.4, 3: 0.3, 8: 0.0}
    mean, low, high, pairs = summary.paired(mine, other)
    assert (mean, low, high) == pytest.approx((0.1, 0.1, 0.1))  # every pair differs by the same
    assert pairs == 3
    spread = summary.paired({seed: float(seed) for seed in range(40)}, dict.fromkeys(range(40), 0.0))
    error = np.std(range(40)) / np.sqrt(40)
    assert spread[1] == pytest.approx(19.5 - 1.96 * error, rel=0.05)
    assert spread[2] == pytest.approx(19.5 + 1.96 * error, rel=0.05)


def test_a_summary_of_a_ledger(tmp_path):
    path = tmp_path / "ledger.jsonl"
    entries = [entry(name, seed, (0.2, 0.3 + 0.01 * seed, end)) for name, end in ENDS.items() for seed in (1, 2, 3)]
    path.write_text("".join(json.dumps(one) + "\n" for one in entries))
    summary.summarize(path, tmp_path / "out")
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "| spo | 3 |" in text
    summary.summarize(tmp_path / "out", tmp_path / "again")
    again = (tmp_path / "again" / "summary.md").read_text()
    assert again.splitlines()[1:] == text.splitlines()[1:]
    assert (tmp_path / "out" / "ladder_b64_lr0.0001_p1024.png").exists()


ENDS = {"grpo": 0.4, "no_baseline": 0.5, "spo": 0.6}

"""The parts of an estimation: what they cost, and how an interrupted one comes together."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from verl.trainer.ppo.v1 import get_trainer_cls, replay_buffer

from spo_verl.config import SpoConfig, estimates_first, parse
from spo_verl.data.values import OfflineValues, provenance
from spo_verl.errors import SpoConfigError, SpoStateError, SpoValuesError
from spo_verl.training import estimate, rewards
from spo_verl.training.estimate import SPENT, Parts, ValueEstimator, spent_on
from spo_verl.training.sessions import read_sessions
from spo_verl.training.trainer import class_for
from tests.support.actor_batches import MODES, Queue
from tests.support.verl_config import compose_verl

SETTINGS = {"policy": "m", "trials": 2}


def tag(prompt_len, response_len, **more):
    return {"prompt_len": prompt_len, "response_len": response_len, **more}


def part(first, spent):
    key_N = np.frombuffer(bytes(range(16 * first, 16 * first + 32)), dtype="V16")
    source = provenance("estimate", policy="m", date="2026-01-01", trials=2, **dict(zip(SPENT, spent, strict=True)))
    return OfflineValues(key_N, np.array([1.0, 0.0]), np.array([2, 2]), (source,))


def test_the_cost_of_a_batch_counts_every_output_and_no_padding():
    # rollout a/0 has two outputs, a/1 and b/0 have one
    keys = ["a_0_0", "a_0_1", "pad_0_0", "a_1_0", "b_0_0"]
    tags = [tag(10, 3), tag(14, 5), tag(99, 99, is_padding=True), tag(10, 7), tag(20, 11)]
    spent = spent_on(read_sessions(keys, tags), tags)
    assert spent == {"responses": 3, "response_tokens": 26, "prompt_tokens": 54}
    assert all(type(count) is int for count in spent.values())


def test_a_resumed_estimation_adds_up_the_costs_of_all_its_parts(tmp_path):
    output = tmp_path / "values.parquet"
    first = Parts(output, SETTINGS, prompts=6, chunk=2)
    part(0, (4, 100, 40)).write(first.file(0))
    again = Parts(output, SETTINGS, prompts=6, chunk=2)
    assert [number for number, _ in again.missing()] == [1, 2]
    # two parts that cost the same are still two parts
    part(2, (4, 100, 40)).write(again.file(1))
    part(4, (3, 70, 30)).write(again.file(2))
    again.join()
    values = OfflineValues.read(output)
    assert not again.folder.exists()
    [source] = values.source
    assert {name: source[name] for name in SPENT} == {"responses": 11, "response_tokens": 270, "prompt_tokens": 110}
    assert (source["kind"], source["policy"], source["trials"]) == ("estimate", "m", 2)
    assert (len(values), values.trials_N.tolist()) == (6, [2] * 6)


def test_one_part_keeps_its_costs(tmp_path):
    parts = Parts(tmp_path / "values.parquet", SETTINGS, prompts=2, chunk=256)
    part(0, (4, 100, 40)).write(parts.file(0))
    assert parts.join().source[0]["response_tokens"] == 100


def test_other_settings_do_not_go_on(tmp_path):
    Parts(tmp_path / "values.parquet", SETTINGS, prompts=2, chunk=1)
    with pytest.raises(SpoValuesError, match="trials was 2, is 3"):
        Parts(tmp_path / "values.parquet", {**SETTINGS, "trials": 3}, prompts=2, chunk=1)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (MODES["colocate_async"], r"trainer_mode=colocate_async .*set trainer\.v1\.trainer_mode=sync"),
        (MODES["separate_async"], r"trainer_mode=separate_async .*set trainer\.v1\.trainer_mode=sync"),
        ([*MODES["colocate_async"], "+spo=plus_plus", "spo.oversample=0.5"], r"set trainer\.v1\.trainer_mode=sync"),
        (["trainer.v1.sampler.sync_refill_failed_groups=True"], "sync_refill_failed_groups=True .*set it to False"),
    ],
)
def test_what_would_bring_other_prompts_in_is_refused_at_start(overrides, said):
    stock = ["algorithm.adv_estimator=spo", "++spo.estimate.output=values.parquet"]
    config = compose_verl([*overrides, *stock])
    with pytest.raises(SpoConfigError, match=said):
        get_trainer_cls(config.trainer.v1.trainer_mode)(config=config)


class Scores(Queue):
    """Every rollout has the score 1."""

    def kv_batch_get(self, keys, partition_id, select_fields):
        return {"rm_scores": torch.nested.nested_tensor([torch.ones(1) for _ in keys], layout=torch.jagged)}


def an_estimate(monkeypatch, *, failed: set[int], returned=lambda uids: uids):
    """Four prompts, two trials each, through verl's synchronous buffer; the failed ones lack a session."""
    queue = Scores()
    for module in (replay_buffer, estimate, rewards):
        monkeypatch.setattr(module, "tq", queue)

    class Estimator(ValueEstimator):
        def __init__(self):
            self.spo, self.global_steps = SpoConfig(), 0

        def _submit_batch_to_rollout(self, batch):
            for number, uid in enumerate(returned([str(uid) for uid in batch["uid"]])):
                status = "failure" if number in failed else "finished"
                queue.items["train"][uid] = {"is_prompt": True, "status": status, "global_steps": 0}
                for session in range(1 if number in failed else 2):
                    queue.items["train"][f"{uid}_{session}_0"] = {"response_len": 1, "prompt_len": 1}

    one = Estimator()
    one.train_dataset = [{"raw_prompt": str(row)} for row in range(4)]
    key_P = np.frombuffer(bytes(range(64)), dtype="V16")
    one._keys = SimpleNamespace(row_of_slot_P=np.arange(4), key_P=key_P)
    collate = lambda rows: {"raw_prompt": np.array([row["raw_prompt"] for row in rows], dtype=object)}  # noqa: E731
    one.train_dataloader = SimpleNamespace(collate_fn=collate)
    one.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[1])
    settings = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "response_length": 1, "policy": "m", "trials": 2}
    parts = SimpleNamespace(settings=settings, started="2026-01-01")
    one.replay_buffer = replay_buffer.ReplayBuffer(
        trainer_mode="sync", trainer_config={}, max_off_policy_threshold=None, max_off_policy_strategy="drop",
        sampler_kwargs={}, poll_interval=0.01,
    )  # fmt: skip
    return one._estimate(parts, np.arange(4))


def test_a_failed_session_is_no_trial_of_its_prompt(monkeypatch):
    values = an_estimate(monkeypatch, failed={1, 3})
    assert values.trials_N.tolist() == [2, 1, 2, 1]
    assert values.successes_N.tolist() == [2.0, 1.0, 2.0, 1.0]


def test_prompts_that_were_not_asked_for_are_an_error_with_its_cause(monkeypatch):
    with pytest.raises(SpoStateError, match=r"1 of 4 prompts .*custom_sampler\.path=null"):
        an_estimate(monkeypatch, failed=set(), returned=lambda uids: [*uids[:3], "another"])


class Fitting:
    """In the place of an SPO trainer: notes what it is asked, in order."""

    def __init__(self, spo, keys, step):
        self.spo, self._keys, self.global_steps, self.asked = spo, keys, step, []
        self._static_value_P = None
        self._evicted = SimpleNamespace(drain_step=lambda: self.asked.append("evicted"))
        self._checkpoint = SimpleNamespace(create=lambda evidence: self.asked.append(evidence))

    def _init_dataloader(self):
        self.asked.append("dataloader")

    def _begin_tracker(self):
        self.asked.append("tracker")

    def fit(self, agent_loop_manager):
        self.asked.append("fit")


def a_run_that_samples_first(tmp_path, *, there=False, step=0, baseline="value"):
    """Two prompts, the first solved once in two trials and the second never."""
    path = str(tmp_path / "values.parquet")
    values = OfflineValues(
        np.frombuffer(bytes(range(32)), dtype="V16"), np.array([1.0, 0.0]), np.array([2, 2]),
        (provenance("estimate", policy="m", date="2026-01-01", trials=2),),
    )  # fmt: skip
    if there:
        values.write(path)
    spo, problems = parse(
        {"initial": {"values": path}, "estimate": {"output": path}, "advantage": {"baseline": baseline}}
    )
    assert spo is not None, problems

    class Run(estimate.ValuesFirst, Fitting):
        def _open_parts(self):
            return SimpleNamespace(output=path)

        def _sample_missing(self, parts, agent_loop_manager):
            self.asked.append(f"sampled by {agent_loop_manager}")
            values.write(path)

    run = Run(spo, SimpleNamespace(key_P=values.key_N), step)
    run._init_dataloader()
    return run


def test_values_are_sampled_before_the_tracker_is_made_of_them_and_the_training_begins(tmp_path):
    run = a_run_that_samples_first(tmp_path, baseline="initial")
    run._begin_tracker()
    run.fit("workers")
    dataloader, sampled, evicted, (alpha_P, beta_P), fit = run.asked
    assert (dataloader, sampled, evicted, fit) == ("dataloader", "sampled by workers", "evicted", "fit")
    # Equation (6) with n0 = 2 and the mass 8: (successes + 1/2) / 3.
    np.testing.assert_allclose(alpha_P / (alpha_P + beta_P), [0.5, 1 / 6])
    np.testing.assert_allclose(alpha_P + beta_P, 8.0)
    np.testing.assert_allclose(run._static_value_P, [0.5, 1 / 6])


@pytest.mark.parametrize("step", [0, 3])
def test_values_that_are_there_are_not_sampled_again(tmp_path, step):
    run = a_run_that_samples_first(tmp_path, there=True, step=step)
    run._begin_tracker()
    run.fit("workers")
    assert run.asked == ["dataloader", "tracker", "fit"]


def test_a_later_policy_is_not_taken_for_the_initial_one(tmp_path):
    run = a_run_that_samples_first(tmp_path, step=3)
    with pytest.raises(SpoValuesError, match=r"is missing, .* step 3, .*restore the file"):
        run._begin_tracker()


@pytest.mark.parametrize(
    ("output", "values", "first"),
    [
        ("values.parquet", "values.parquet", True),
        ("values.parquet", "./a/../values.parquet", True),
        ("values.parquet", "others.parquet", False),
        ("values.parquet", None, False),
        (None, "values.parquet", False),
        (3, 3, False),
    ],
)
def test_one_file_in_both_settings_means_sample_first(output, values, first):
    assert estimates_first(output, values) is first


@pytest.mark.parametrize(("values", "made"), [("values.parquet", "ValuesFirstSpo"), ("others.parquet", "Estimating")])
def test_the_class_of_a_run_follows_from_the_two_files(values, made):
    config = compose_verl(
        [
            "+spo=paper",
            "algorithm.adv_estimator=spo",
            "spo.estimate.output=values.parquet",
            f"spo.initial.values={values}",
        ]
    )
    found = class_for(config, get_trainer_cls("sync"))
    assert found.__name__.startswith(made)

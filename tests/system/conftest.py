"""The real runs of the system tests, two launches at a time, each made once per session.

| run | estimator | what it is |
|---|---|---|
| killed | spo=bspo | constant retention, scripted outcomes, 10 steps without a stop, SIGKILLed in the next one |
| resumed | as killed | continues after step 5 with what the killed run had then, so that six steps were made twice |
| grpo | grpo | two ranks, two steps, checkpoint at 2 |
| spo | spo=paper | continues from grpo's checkpoint to step 6, values of 50 of 60 prompts, both divergences, quotas |
| estimating | spo | `spo-verl values estimate` of all prompts, SIGKILLed after the first part |
| estimated | spo | the same command again |
| async_killed, async_resumed | spo=plus_plus | `colocate_async` with stragglers, calibrated values; SIGKILL, resume |
| orphaned | spo=paper | two ranks, `colocate_async` by drift, late rollouts stopped; tracker killed in the sixth step |
| separate | spo=paper | `separate_async`: rollout processes of their own, two updates per weight transfer |
| tensor | spo=paper | Megatron on two ranks: tensor parallel 2 with sequence parallelism, three steps |
| megatron_grpo | grpo | (slow) Megatron on two ranks, data parallel with a distributed optimizer, two steps |
| pipeline, continued | spo=paper | (slow) Megatron on two ranks: pipeline parallel 2, then a resume |
| gsm8k | spo=paper | (slow) two steps on all 7,473 problems with imported offline values, where the problems are |
| quickstart | spo=paper | the quickstart, small: offline values, a training out of time after one step, and the rest |

Two launches run side by side on one machine all the time, and must not disturb each other. Only those are made whose
runs a collected test asks for.
"""

from __future__ import annotations

import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spo_verl.data.values import OfflineValues, provenance
from spo_verl.small.model import ModelShape, build_model, build_tokenizer, save
from tests.support.gsm8k import THERE
from tests.system.gsm8k_run import train_on_gsm8k
from tests.system.harness import PROMPTS, REPEATED, TRIALS, Run, estimate, scripted_values, toy_keys, train, write_data
from tests.system.quickstart_run import Call, stopped_and_finished

TIMES = pytest.StashKey[list[str]]()
TWO_RANKS = "trainer.n_gpus_per_node=2"
SCRIPTED = [
    "+spo=bspo",
    "actor_rollout_ref.rollout.n=2",
    "spo.seed=11",
    "spo.rollout_n=spo_verl.training.rollout_n:more_where_uncertain",
    "spo.reward.low=-1",
    "spo.reward.high=1",
    "spo.forgetting.mode=constant",
    "spo.forgetting.rho=0.9",
    "actor_rollout_ref.rollout.agent.default_agent_loop=scripted",
    "trainer.total_training_steps=11",
    "trainer.save_freq=5",
    "trainer.test_freq=-1",
]
ASYNC = [
    "+spo=plus_plus",
    "spo.forgetting.rho=1.0",
    "spo.seed=5",
    "spo.value.readout=calibrated",
    "spo.value.features=[extra_info.index]",
    "spo.oversample=0.5",
    "spo.late.policy=carry",
    "spo.reward.low=-1",
    "spo.reward.high=1",
    "trainer.v1.trainer_mode=colocate_async",
    "trainer.v1.sampler.max_off_policy_threshold=null",
    "actor_rollout_ref.rollout.agent.default_agent_loop=slow",
    "trainer.total_training_steps=8",
    "trainer.save_freq=4",
    "trainer.test_freq=-1",
]
ORPHANED = [
    "+spo=paper",
    "actor_rollout_ref.rollout.n=2",
    "spo.bspo=True",
    "spo.forgetting.mode=drift",
    # Nothing is forgotten, so that evidence is a count; how far the policy moves is measured all the same.
    "spo.forgetting.rho_min=1",
    "spo.forgetting.rho_max=1",
    "spo.oversample=0.5",
    "spo.late.policy=abort",
    "spo.reward.low=-1",
    "spo.reward.high=1",
    "trainer.v1.trainer_mode=colocate_async",
    "trainer.v1.sampler.max_off_policy_threshold=null",
    "actor_rollout_ref.rollout.agent.default_agent_loop=half_stuck",
    TWO_RANKS,
    "trainer.total_training_steps=6",
    "trainer.save_freq=5",
    "trainer.test_freq=-1",
]
SEPARATE = [
    "+spo=paper",
    "spo.seed=3",
    "trainer.v1.trainer_mode=separate_async",
    "actor_rollout_ref.hybrid_engine=False",
    # Two updates per version; no surplus, so that every rollout of a step comes from the weights of its step.
    "trainer.v1.separate_async.parameter_sync_step=2",
    "trainer.v1.separate_async.num_warmup_batches=0",
    "trainer.total_training_steps=4",
    "trainer.save_freq=4",
    "trainer.test_freq=-1",
]
MEGATRON = [
    "model_engine=megatron",
    "+spo=paper",
    "spo.seed=7",
    "trainer.n_gpus_per_node=2",
    # So large that a rollout by the weights of before would be far from the policy.
    "actor_rollout_ref.actor.optim.lr=1e-2",
    "trainer.test_freq=-1",
]
EVERY_OTHER_STEP = ["trainer.save_freq=2", "trainer.test_freq=2"]


@pytest.fixture(scope="session")
def workdir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_data(folder)
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder / "model")
    build_model(tokenizer, ModelShape(layers=2), seed=0).save_pretrained(folder / "model")
    # Megatron divides the vocabulary among the ranks.
    tokenizer.add_tokens(["<more>"] * (len(tokenizer) % 2))
    save(build_model(tokenizer, ModelShape(layers=2), seed=0), tokenizer, folder / "even")
    (folder / "agents.yaml").write_text(
        "- name: scripted\n  _target_: tests.support.scripted_agent.ScriptedAgentLoop\n"
        "- name: slow\n  _target_: tests.support.slow_agent.SlowAgentLoop\n"
        "- name: half_stuck\n  _target_: tests.support.slow_agent.HalfStuckAgentLoop\n"
    )
    return folder


@pytest.fixture(scope="session")
def launches(request, workdir, tmp_path_factory, pytestconfig):
    scripted = [*SCRIPTED, f"actor_rollout_ref.rollout.agent.agent_loop_config_path={workdir}/agents.yaml"]

    def killed_then_resumed() -> tuple[Run, ...]:
        killed = train(
            workdir,
            "killed",
            scripted,
            kill_when=lambda log: re.search(r"spo: step=11 .*draw_digest", log) is not None,
            feature="scripted outcomes",
        )
        # What it had left if it had been killed five steps earlier.
        shutil.copytree(killed.checkpoints, workdir / "resumed")
        shutil.rmtree(workdir / "resumed" / "global_step_10")
        (workdir / "resumed" / "latest_checkpointed_iteration.txt").write_text("5")
        return killed, train(workdir, "resumed", scripted, feature="scripted outcomes, resumed")

    def grpo_then_spo() -> tuple[Run, ...]:
        # A rank has four of a mini-batch's eight trajectories.
        every = [*EVERY_OTHER_STEP, TWO_RANKS, "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4"]
        stock = ["algorithm.adv_estimator=grpo", "actor_rollout_ref.rollout.n=2", "trainer.total_training_steps=2"]
        grpo = train(workdir, "grpo", [*stock, *every], checkpoints="shared")
        write_partial_values(workdir / "partial.parquet")
        overrides = [
            "+spo=paper",
            "spo.drift.measure_both=True",
            "spo.sampling.quota={toy0: 1, toy1: 3}",
            f"spo.initial.values={workdir}/partial.parquet",
            "trainer.total_training_steps=6",
            "trainer.logger=[console,tensorboard]",
            "spo.samples_every=2",
        ]
        feature = "after GRPO, quotas, offline values"
        return grpo, train(workdir, "spo", [*overrides, *every], checkpoints="shared", feature=feature)

    def estimating_then_estimated() -> tuple[Run, ...]:
        first = workdir / "values.parquet.parts" / "part-000000.parquet"
        estimating = estimate(workdir, "estimating", scripted, kill_when=lambda log: first.exists())
        return estimating, estimate(workdir, "estimated", scripted)

    def async_killed_then_async_resumed() -> tuple[Run, ...]:
        slow = [*ASYNC, f"actor_rollout_ref.rollout.agent.agent_loop_config_path={workdir}/agents.yaml"]
        killed = train(
            workdir,
            "async_killed",
            slow,
            checkpoints="async",
            kill_when=lambda log: re.search(r"spo: step=6 .*draw_digest", log) is not None,
            feature="carried stragglers",
        )
        return killed, train(workdir, "async_resumed", slow, checkpoints="async", feature="carried stragglers, resumed")

    def orphaned() -> tuple[Run, ...]:
        half_stuck = [*ORPHANED, f"actor_rollout_ref.rollout.agent.agent_loop_config_path={workdir}/agents.yaml"]
        found = train(
            workdir,
            "orphaned",
            half_stuck,
            kill_when=lambda log: re.search(r"spo: step=6 .*draw_digest", log) is not None,
            victim="ray::TrackerHost",
            feature="drift, stopped rollouts",
        )
        return (found,)

    def gsm8k() -> tuple[Run, ...]:
        return (train_on_gsm8k(tmp_path_factory.mktemp("gsm8k")),)

    def quickstart() -> tuple[Call, ...]:
        return stopped_and_finished(tmp_path_factory.mktemp("quickstart"))

    def separate() -> tuple[Run, ...]:
        return (train(workdir, "separate", SEPARATE, feature="two updates per transfer"),)

    megatron = [*MEGATRON, f"actor_rollout_ref.model.path={workdir}/even"]

    def tensor() -> tuple[Run, ...]:
        more = ["actor_rollout_ref.actor.megatron.tensor_model_parallel_size=2"]
        more += ["trainer.total_training_steps=3", "trainer.save_freq=3"]
        return (train(workdir, "tensor", [*megatron, *more], feature="sequence parallel"),)

    def megatron_grpo() -> tuple[Run, ...]:
        stock = [one for one in megatron if not one.startswith(("+spo", "spo."))]
        stock += ["algorithm.adv_estimator=grpo", "actor_rollout_ref.rollout.n=2", "trainer.total_training_steps=2"]
        return (train(workdir, "megatron_grpo", stock),)

    def pipeline_then_continued() -> tuple[Run, ...]:
        split = [*megatron, "actor_rollout_ref.actor.megatron.pipeline_model_parallel_size=2", "trainer.save_freq=2"]
        first = train(workdir, "pipeline", [*split, "trainer.total_training_steps=2"])
        more = ["trainer.total_training_steps=4"]
        return first, train(workdir, "continued", [*split, *more], checkpoints="pipeline", feature="resume")

    # Two workers take these in order, the longest first.
    every = [
        quickstart,
        async_killed_then_async_resumed,
        killed_then_resumed,
        grpo_then_spo,
        estimating_then_estimated,
        orphaned,
        separate,
        tensor,
        megatron_grpo,
        pipeline_then_continued,
    ]
    every += [gsm8k] if THERE else []
    wanted = {name for item in request.session.items for name in item.fixturenames}
    tasks = [task for task in every if wanted & set(task.__name__.split("_then_"))]
    begin = time.monotonic()
    with ThreadPoolExecutor(max_workers=2) as pool:
        running = {task.__name__: pool.submit(task) for task in tasks}
        yield running
    ended = [run for task in running.values() if task.exception() is None for run in task.result()]
    pytestconfig.stash[TIMES] = [
        *(f"{run.name} {run.seconds:.0f} s" for run in ended),
        *(f"{name} twice, as Ray was not up: {log}" for name, log in REPEATED.items()),
        f"all of them {time.monotonic() - begin:.0f} s",
    ]


def pytest_terminal_summary(terminalreporter, config) -> None:
    if TIMES in config.stash:
        terminalreporter.write_line(f"real launches: {', '.join(config.stash[TIMES])}")


def write_partial_values(path: Path) -> None:
    """What the estimation finds (it is compared with the same numbers), without the last ten prompts."""
    successes, trials = scripted_values()
    known = slice(0, PROMPTS - 10)
    source = provenance("estimate", policy="scripted", trials=TRIALS)
    OfflineValues(toy_keys()[known], successes[known], trials[known], (source,)).write(path)


@pytest.fixture(scope="session")
def grpo(launches) -> Run:
    return launches["grpo_then_spo"].result()[0]


@pytest.fixture(scope="session")
def spo(launches) -> Run:
    return launches["grpo_then_spo"].result()[1]


@pytest.fixture(scope="session")
def killed(launches) -> Run:
    return launches["killed_then_resumed"].result()[0]


@pytest.fixture(scope="session")
def resumed(launches) -> Run:
    return launches["killed_then_resumed"].result()[1]


@pytest.fixture(scope="session")
def estimating(launches) -> Run:
    return launches["estimating_then_estimated"].result()[0]


@pytest.fixture(scope="session")
def estimated(launches) -> Run:
    return launches["estimating_then_estimated"].result()[1]


@pytest.fixture(scope="session")
def quickstart(launches) -> tuple[Call, ...]:
    return launches["quickstart"].result()


@pytest.fixture(scope="session")
def async_killed(launches) -> Run:
    return launches["async_killed_then_async_resumed"].result()[0]


@pytest.fixture(scope="session")
def async_resumed(launches) -> Run:
    return launches["async_killed_then_async_resumed"].result()[1]


@pytest.fixture(scope="session")
def separate(launches) -> Run:
    return launches["separate"].result()[0]


@pytest.fixture(scope="session")
def gsm8k(launches) -> Run:
    return launches["gsm8k"].result()[0]


@pytest.fixture(scope="session")
def orphaned(launches) -> Run:
    return launches["orphaned"].result()[0]


@pytest.fixture(scope="session")
def tensor(launches) -> Run:
    return launches["tensor"].result()[0]


@pytest.fixture(scope="session")
def megatron_grpo(launches) -> Run:
    return launches["megatron_grpo"].result()[0]


@pytest.fixture(scope="session")
def pipeline(launches) -> Run:
    return launches["pipeline_then_continued"].result()[0]


@pytest.fixture(scope="session")
def continued(launches) -> Run:
    return launches["pipeline_then_continued"].result()[1]

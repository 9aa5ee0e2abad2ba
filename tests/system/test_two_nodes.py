"""Two nodes with Ray, each a machine to itself, run a recipe as recipes/cluster/README.md says; one of them is lost.

The lines of the page are run in machines made of Linux namespaces (``machines.py``; needs root). Two launches of about
three minutes: the first loses its second node after the third step, the other continues with a new one.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from spo_verl.launching import launch as launching
from spo_verl.small.model import ModelShape, build_model, build_tokenizer
from spo_verl.tracker import Tracker, TrackerSettings
from tests.system.harness import PROMPTS, REPOSITORY, TOY, Run, launch, rollouts_of, toy_keys, write_data
from tests.system.machines import NETWORK, Machine

pytestmark = [pytest.mark.slow, pytest.mark.system, pytest.mark.timeout(3600)]

PAGE = REPOSITORY / "recipes" / "cluster" / "README.md"
FURTHER = 2
"""Steps of the run that continues. There is a checkpoint after every second step."""
ENVIRONMENT = {
    **launching.ENVIRONMENT,
    **{name: value for name, value in launching.CPU_ENVIRONMENT.items() if name != "VERL_PLATFORM"},
    "PYTHONPATH": str(REPOSITORY),
    # Of the page's paragraph on a CPU; VERL_PLATFORM comes to the workers from the run.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
}
ACTORS = """
import json, ray
ray.init(log_to_driver=False)
from ray._private.state import actors
print("ACTORS", json.dumps([
    [one["ActorClassName"], one["Name"], one["Address"]["NodeID"]]
    for one in actors().values() if one["State"] == "ALIVE"
]))
print("NODES", json.dumps({one["NodeID"]: one["NodeManagerHostname"] for one in ray.nodes()}))
"""


def lines(prompt: str) -> list[str]:
    """Lines of the page's block for bare machines with this prompt, as they are typed."""
    block = re.search(r"## Bare machines\n.*?```console\n(.*?)```", PAGE.read_text(), flags=re.DOTALL).group(1)
    return [line.removeprefix(f"{prompt}$").strip() for line in block.splitlines() if line.startswith(f"{prompt}$")]


def typed(line: str) -> str:
    """A line with what a reader fills in: the address, and the size of these nodes."""
    line = line.replace("HEAD_ADDRESS", f"{NETWORK}.1").replace("--num-gpus=8", "--num-gpus=1")
    return line + " --num-cpus=16 --object-store-memory=500000000" if "ray start" in line else line


def sizes(workdir: Path) -> list[str]:
    """What makes the recipe small enough for two cores, and where it reads and writes."""
    return [
        "+platform=cpu", "trainer.n_gpus_per_node=1",
        f"data.train_files=[{workdir}/train.parquet]", f"data.val_files=[{workdir}/val.parquet]",
        f"actor_rollout_ref.model.path={workdir}/model", "spo.initial.values=null",
        "data.train_batch_size=16", "actor_rollout_ref.actor.ppo_mini_batch_size=8", *TOY,
        "spo.forgetting.mode=constant", "spo.forgetting.rho=0.9", "trainer.logger=[console]",
        "trainer.val_before_train=False", "trainer.test_freq=-1", "trainer.save_freq=2",
        f"trainer.default_local_dir={workdir}/checkpoints",
        f"hydra.run.dir={workdir}/hydra",
    ]  # fmt: skip


class Cluster:
    """Machines with Ray, started by the lines of the page."""

    def __init__(self, shared: Path) -> None:
        self.shared = shared
        *prepare, start, run = lines("head")
        self._run = run
        self.head = Machine(shared, 1, ENVIRONMENT)
        self.others: list[Machine] = []
        self.placed: dict[str, dict[str, list[str]]] = {}
        for line in prepare:
            self.head.run(typed(line))
        self.head.run(typed(start))

    def add(self) -> None:
        """One more machine, with the head's token."""
        other = Machine(self.shared, 2 + len(self.others), ENVIRONMENT)
        self.others.append(other)
        self.head.connect(other)
        (other.home / ".ray").mkdir()
        shutil.copy(self.head.home / ".ray" / "auth_token", other.home / ".ray" / "auth_token")
        for line in lines("other"):
            other.run(typed(line))

    def train(self, name: str, steps: int, *, after, **recorded):
        """The page's line for the recipe, on the head; ``after`` is called with the log while it runs."""
        recipe = re.sub(r"(run\.sh) \S+", r"\1 gsm8k_qwen3_0_6b/spo", typed(self._run))
        command = [
            "env", "VERL_PLATFORM=cpu", *shlex.split(recipe), *sizes(self.shared),
            f"trainer.total_training_steps={steps}",
            f"trainer.rollout_data_dir={rollouts_of(self.shared, name)}",
        ]  # fmt: skip
        return launch(
            self.shared, name, self.head.command(*command), checkpoints="checkpoints", kill_when=after, **recorded
        )

    def look(self, name: str) -> None:
        """Note which machine each actor is on: class -> names of machines."""
        (self.shared / "actors.py").write_text(ACTORS)
        found = self.head.run(
            f"RAY_AUTH_MODE=token RAY_ADDRESS={self.head.address}:6379 python {self.shared}/actors.py"
        )
        actors, nodes = (
            json.loads(re.search(rf"^{word} (.*)$", found, re.MULTILINE)[1]) for word in ("ACTORS", "NODES")
        )
        self.placed[name] = {}
        for kind, title, node in actors:
            self.placed[name].setdefault(f"{kind} {title}", []).append(nodes[node])

    def stop(self) -> None:
        for machine in [*self.others, self.head]:
            machine.kill()


class Story(NamedTuple):
    """Both launches; ``first`` is the step whose checkpoint the lost run left."""

    cluster: Cluster
    lost: Run
    continued: Run
    first: int


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    shared = tmp_path_factory.mktemp("shared")
    write_data(shared)
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(shared / "model")
    build_model(tokenizer, ModelShape(layers=2), seed=0).save_pretrained(shared / "model")
    cluster = Cluster(shared)
    try:
        cluster.add()

        def lose_the_second(log: str) -> bool:
            if "lost" not in cluster.placed and "step:1 - " in log:
                cluster.look("lost")
            if "step:3 - " in log:
                cluster.others[0].kill()
            return False

        lost = cluster.train("lost", 50, after=lose_the_second, feature="a node is lost", meant_to_fail=True)
        first = int((lost.checkpoints / "latest_checkpointed_iteration.txt").read_text())
        cluster.add()

        def look(log: str) -> bool:
            if "continued" not in cluster.placed and f"step:{first + 1} - " in log:
                cluster.look("continued")
            return False

        continued = cluster.train("continued", first + FURTHER, after=look, feature="resumed with a new node")
        yield Story(cluster, lost, continued, first)
    finally:
        cluster.stop()


def where(placed: dict[str, list[str]], word: str) -> set[str]:
    return {node for title, nodes in placed.items() if word in title for node in nodes}


def test_training_and_rollouts_are_on_both_nodes_and_the_tracker_is_where_verls_task_runner_is(story):
    for name, other in (("lost", "node2"), ("continued", "node3")):
        placed = story.cluster.placed[name]
        assert where(placed, "WorkerDict") == {"node1", other}, placed
        assert where(placed, "vLLM") == {"node1", other}, placed
        # Ray puts the task runner, which needs no resources, on any node.
        assert len(where(placed, "TrackerHost")) == 1, placed
        assert where(placed, "TrackerHost") == where(placed, "TaskRunner"), placed


def test_the_token_is_asked_for_and_private(story):
    head = story.cluster.head
    assert (head.home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    for variables in ("RAY_AUTH_MODE=token RAY_AUTH_TOKEN=another", "HOME=/nowhere RAY_AUTH_MODE=token"):
        refused = head.run(f"{variables} ray status --address={head.address}:6379 2>&1 || true")
        assert "Authentication" in refused, refused
        assert "node_" not in refused


def test_a_lost_node_is_a_clear_error(story):
    lost = story.lost
    assert lost.returncode not in (0, -9), lost.log[-3000:]
    assert set(lost.metrics()) >= {1, 2, 3}
    assert lost.saved().keys() >= {2, story.first}
    # As Ray, gloo or the plugin says it, which depends on what the run waits for at that moment.
    address = re.escape(f"{NETWORK}.2")
    said = rf"node (has )?died|node was terminated|unexpectedly|is gone|is unavailable: |error \[{address}\]"
    assert re.search(said, lost.log[lost.log.index("step:3 - ") :]), lost.log[-6000:]


def test_a_new_node_continues_from_the_checkpoint(story):
    lost, continued, first = story.lost, story.continued, story.first
    assert continued.returncode == 0, continued.log[-3000:]
    assert continued.loaded() == {first: lost.saved()[first]}
    assert set(continued.metrics()) == set(range(first + 1, first + FURTHER + 1))
    assert set(continued.saved()) == {first + FURTHER}
    again = lost.draws().keys() & continued.draws().keys()
    assert first + 1 in again
    assert {step: continued.draws()[step] for step in again} == {step: lost.draws()[step] for step in again}
    assert "its nodes have num_cpus, num_gpus, object_store_memory of their own" in continued.log


def test_both_engines_agree_on_both_nodes(story):
    for run in (story.lost, story.continued):
        for metrics in run.metrics().values():
            assert metrics["training/rollout_probs_diff_max"] < 1e-4


def test_evidence_is_a_count_of_the_rollouts_of_both_runs(story):
    last = story.first + FURTHER
    settings = TrackerSettings(forgetting_mode="constant", rho=0.9, references=())
    tracker, report = Tracker.load(story.continued.checkpoints / f"global_step_{last}" / "spo", toy_keys(), settings)
    assert (report.new, report.vanished) == (0, 0)
    alpha_P, beta_P = tracker.evidence()
    expected = dict.fromkeys(range(PROMPTS), (0.5, 0.5))
    for step in range(1, last + 1):
        run = story.lost if step <= story.first else story.continued
        for line in (run.rollouts / f"{step}.jsonl").read_text().splitlines():
            record = json.loads(line)
            if record["uid"].startswith("pad"):
                continue
            index = int(re.search(r"(\d+)\+1=", record["input"]).group(1))
            alpha, beta = expected[index]
            expected[index] = (0.9 * alpha + record["score"], 0.9 * beta + 1 - record["score"])
    for index, pair in expected.items():
        assert (alpha_P[index], beta_P[index]) == pytest.approx(pair, rel=1e-12), index

"""Probes of the trainer: verl's own functions, with stand-ins for the steps, workers and storage around them."""

from __future__ import annotations

import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch.utils.data import Dataset
from transfer_queue import KVBatchMeta
from verl import DataProto
from verl.trainer.ppo import core_algos
from verl.trainer.ppo import utils as ppo_utils
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.trainer.ppo.v1 import trainer_base
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

from tests.patches.overlay import OVERLAY, config, outcome

HERE = Path(__file__).resolve().parent


def estimators() -> dict[str, Any]:
    seen: dict[str, Any] = {}

    @core_algos.register_adv_est("probe_whole")
    def whole(token_level_rewards, response_mask, config, index, batch=None, non_tensor_batch=None, batch_keys=None):
        seen["batch"] = None if batch is None else batch["old_log_probs"].tolist()
        seen["non_tensor_batch"] = None if non_tensor_batch is None else list(non_tensor_batch["note"])
        seen["batch_keys"] = batch_keys
        return token_level_rewards, token_level_rewards

    @core_algos.register_adv_est("probe_plain")
    def plain(token_level_rewards, response_mask, **kwargs):
        seen["plain"] = sorted(kwargs)
        return token_level_rewards, token_level_rewards

    ones = torch.ones(3, 2)
    batch = TensorDict(
        {
            "token_level_rewards": ones,
            "response_mask": ones,
            "old_log_probs": torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
            "prompts": torch.ones(3, 1),
            "attention_mask": torch.ones(3, 3, dtype=torch.int64),
        },
        batch_size=3,
    )
    fields = {"uid": ["a", "a", "b"], "note": ["x", "y", "z"], "right": [1.0, 0.0, 1.0], "form": [0.0, 0.0, 1.0]}
    data = DataProto(batch=batch, non_tensor_batch={k: np.array(v, dtype=object) for k, v in fields.items()})
    for name in ("probe_whole", "probe_plain"):
        compute_advantage_for_multi_trajectories(data, ["a_0_0", "a_1_0", "b_0_0"], adv_estimator=name, config={})
    gdpo = {"gdpo_reward_keys": ["right", "form"]}
    seen["gdpo"] = compute_advantage(data, "gdpo", config=gdpo).batch["advantages"].tolist()
    report = dict(seen)
    compute_advantage(data, "probe_whole", config={})
    return {**report, "batch_keys without TransferQueue": seen["batch_keys"]}


class Rows(Dataset):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"raw_prompt": f"prompt {row}", "row": row}


class Loop(trainer_base.PPOTrainer):
    """verl's ``fit`` and ``_init_dataloader`` with steps that only read the dataloader."""

    def __init__(self, rows: int, *overrides: str) -> None:
        self.config = config(
            "data.train_batch_size=4", "data.dataloader_num_workers=0", "data.val_batch_size=1",
            "trainer.val_before_train=False", "trainer.save_freq=100", "trainer.test_freq=100", *overrides,
        )  # fmt: skip
        self.trainer_mode, self.parameter_sync_step, self.global_steps = "sync", 1, 0
        self.tokenizer = self.processor = None
        self.events: list[Any] = []
        trainer_base.create_rl_dataset = lambda *_, **__: Rows(rows)
        self._init_dataloader()

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        rows = [int(row) for row in self._fetch_one_gen_batch()["row"]]
        self.events.append(["step", self.global_steps, rows])
        return KVBatchMeta(
            partition_id="train", keys=[f"{i}_{row}" for i, row in enumerate(rows)], tags=[{}] * len(rows)
        )

    def _save_checkpoint(self) -> None:
        self.saved = self.train_dataloader.state_dict()
        self.events.append(["save", self.global_steps])

    def _validate(self) -> dict[str, float]:
        self.events.append(["validate", self.global_steps])
        return {"score": 1.0}

    def on_train_end(self) -> None:
        self.events.append(["end"])

    def _shutdown_dump_executor(self) -> None:
        self.events.append(["shutdown"])

    def _nothing(self, *_: Any, **__: Any) -> None:
        return None

    _start_profiling = _stop_profiling = _compute_metrics = on_step_end = on_sample_end = _nothing

    def run(self) -> list[Any]:
        quiet = SimpleNamespace(log=self._nothing)
        for name in ("Tracking", "ValidationGenerationsLogger", "DapoFilteredRewardTableLogger"):
            setattr(trainer_base, name, lambda **_: quiet)
        trainer_base.tq = SimpleNamespace(kv_clear=self._nothing)
        self.fit(None)
        return self.events


def loop() -> dict[str, Any]:
    def events(steps: str) -> list[Any]:
        run = Loop(12, "trainer.total_epochs=2", f"trainer.total_training_steps={steps}").run()
        return [event[:2] for event in run]

    def horizon(steps: str) -> list[int]:
        made = Loop(12, "trainer.total_epochs=2", f"trainer.total_training_steps={steps}")
        return [made.total_training_steps, made.config.actor_rollout_ref.actor.optim.total_training_steps]

    return {
        "by epochs": events("10"),
        "by steps": events("2"),
        "unset": events("null"),
        "horizon": {steps: horizon(steps) for steps in ("10", "2", "null")},
        "too few prompts": outcome(lambda: Loop(3).steps_per_epoch),
        "too few prompts, in fit": outcome(lambda: Loop(3).run()),
        "too few prompts, validation only": outcome(
            lambda: Loop(3, "trainer.val_only=True", "trainer.val_before_train=True").run()
        ),
    }


def curriculum() -> dict[str, Any]:
    named = [f"data.sampler.class_path={HERE / 'samplers.py'}", "data.sampler.class_name=OneByOne"]
    added = [f"+{override}" for override in named]
    report: dict[str, Any] = {"setting": outcome(lambda: type(Loop(8, *named).train_dataloader.sampler).__name__)}
    report["default"] = type(Loop(8).train_dataloader.sampler).__name__
    report["in order"] = type(Loop(8, "data.shuffle=False").train_dataloader.sampler).__name__
    if OVERLAY is None:  # without the setting in the schema, the nearest thing a user can write
        report["added"] = type(Loop(8, *added).train_dataloader.sampler).__name__
        return report
    settings = [*named, "trainer.total_epochs=2", "trainer.save_freq=3", "data.prompt_key=own"]
    made = Loop(8, *settings)
    report["rows"] = [event[2] for event in made.run() if event[0] == "step"]
    report["saw the data section"] = made.train_dataloader.sampler.prefix
    half = Loop(8, *settings, "trainer.total_training_steps=3")
    half.run()
    resumed = Loop(8, *settings)
    resumed.train_dataloader.load_state_dict(half.saved)
    report["rows after a resume"] = [int(row) for row in resumed._fetch_one_gen_batch()["row"]]
    report["workers"] = outcome(lambda: Loop(8, *named, "data.dataloader_num_workers=2").steps_per_epoch)
    report["other class"] = outcome(lambda: Loop(8, named[0], "data.sampler.class_name=NotASampler").steps_per_epoch)
    bare = OmegaConf.create({"shuffle": False})  # a `data` section of another entry point, without the new keys
    report["no such section"] = type(ppo_utils.create_rl_sampler(bare, Rows(3))).__name__
    return report


def poll_interval() -> dict[str, Any]:
    def built(mode: str, *overrides: str) -> float:
        given = config(*overrides)
        trainer = SimpleNamespace(
            config=given,
            trainer_mode=mode,
            _add_prompts_to_generate=None,
            _resolve_filter_groups_metric=lambda: None,
        )
        return trainer_base.PPOTrainer._build_replay_buffer(trainer).poll_interval

    quarter = "trainer.v1.sampler.poll_interval=0.25"

    def custom(name: str) -> list[str]:
        key = "trainer.v1.sampler.custom_sampler"
        return [f"{key}.path={HERE / 'samplers.py'}", f"{key}.name={name}"]

    return {
        "default": [built("sync"), built("colocate_async")],
        "custom, default": [built("sync", *custom("InheritedBuffer")), built("sync", *custom("ClosedBuffer"))],
        "set": [outcome(lambda mode=mode: built(mode, quarter)) for mode in ("sync", "colocate_async")],
        "custom, set": outcome(lambda: built("sync", quarter, *custom("InheritedBuffer"))),
        "zero": outcome(lambda: built("sync", "trainer.v1.sampler.poll_interval=0")),
    }


def marker(folder: Path) -> dict[str, Any]:
    """Save twice; the second time the disk takes no more bytes when the marker is written."""
    nothing = lambda *_, **__: None  # noqa: E731
    made = Loop(8, f"trainer.default_local_dir={folder}")
    made.use_critic, made.checkpoint_callback = False, SimpleNamespace(on_save=nothing)
    made.actor_rollout_wg = SimpleNamespace(save_checkpoint=nothing)
    file = folder / "latest_checkpointed_iteration.txt"

    def save(step: int) -> Any:
        made.global_steps = step
        return outcome(lambda: trainer_base.PPOTrainer._save_checkpoint(made))

    report: dict[str, Any] = {"first": save(10), "after the first": file.read_text()}
    real_save, torch.save = torch.save, nothing  # the dataloader's state comes before the marker
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        report["second"] = save(20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        torch.save = real_save
    report["after the second"] = file.read_text()
    found = outcome(lambda: find_latest_ckpt_path(str(folder)))
    report["resume"] = found if found is None else Path(found).name if "Error" not in found else found
    report["third"] = save(30)
    report["after the third"] = file.read_text()
    report["left over"] = sorted(path.name for path in folder.glob("latest*"))
    return report

"""Print, as JSON, what verl builds for an estimator other than spo: run once with the plugin and once without.

Usage: python verl_fingerprint.py WORKDIR ESTIMATOR
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import verl
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from verl.protocol import DataProto
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories


def name(thing: object) -> str:
    cls = thing if isinstance(thing, type) or (callable(thing) and hasattr(thing, "__qualname__")) else type(thing)
    return f"{cls.__module__}.{cls.__qualname__}"


def advantages(config: object, estimator: str) -> str:
    rng = torch.Generator().manual_seed(0)
    rows, width, group = 32, 7, 4
    mask = (torch.arange(width) < torch.randint(1, width + 1, (rows, 1), generator=rng)).long()
    reward = torch.zeros(rows, width)
    reward[torch.arange(rows), mask.sum(1) - 1] = torch.randint(0, 2, (rows,), generator=rng).float()
    data = DataProto.from_dict(
        tensors={
            "token_level_rewards": reward,
            "response_mask": mask,
            "values": torch.randn(rows, width, generator=rng),
        },
        non_tensors={"uid": np.array([f"u{row // group}" for row in range(rows)], dtype=object)},
    )
    keys = [f"u{row // group}_{row % group}_0" for row in range(rows)]
    data = compute_advantage_for_multi_trajectories(
        data, keys, adv_estimator=estimator, gamma=0.99, lam=0.95, num_repeat=group, config=config.algorithm
    )
    return hashlib.sha256(data.batch["advantages"].numpy().tobytes()).hexdigest()


def main(workdir: Path, estimator: str) -> dict:
    rows = [
        {
            "data_source": "toy",
            "prompt": [{"role": "user", "content": f"{i}+1="}],
            "reward_model": {"style": "rule", "ground_truth": str(i + 1)},
            "extra_info": {"index": i},
        }
        for i in range(20)
    ]
    file = workdir / "rows.parquet"
    pd.DataFrame(rows).to_parquet(file)
    with initialize_config_dir(config_dir=str(Path(verl.__file__).parent / "trainer" / "config"), version_base=None):
        config = compose(
            "ppo_trainer",
            [
                f"algorithm.adv_estimator={estimator}",
                f"data.train_files={file}",
                f"data.val_files={file}",
                "data.train_batch_size=8",
                "data.seed=3",
                "data.filter_overlong_prompts=False",
                "trainer.total_epochs=2",
            ],
        )
    before = OmegaConf.to_yaml(config, resolve=True)
    trainer = get_trainer_cls("sync")(config=config)
    trainer.tokenizer = trainer.processor = None
    trainer._init_dataloader()
    first = next(iter(trainer.train_dataloader))
    return {
        "trainer": name(trainer),
        "trainer mro": [name(cls) for cls in type(trainer).__mro__],
        "trainer registry": {mode: name(cls) for mode, cls in TRAINER_REGISTRY.items()},
        "buffer": name(trainer.replay_buffer),
        "poll interval": trainer.replay_buffer.poll_interval,
        "loader": name(trainer.train_dataloader),
        "sampler": name(trainer.train_dataloader.sampler),
        "collate": name(trainer.train_dataloader.collate_fn),
        "first batch": [int(index) for index in first["index"]],
        "first batch fields": sorted(first),
        "steps": [trainer.total_training_steps, trainer.steps_per_epoch],
        "estimators": {key: name(function) for key, function in sorted(ADV_ESTIMATOR_REGISTRY.items())},
        "config": before,
        "config after": OmegaConf.to_yaml(config, resolve=True),
        "advantages": advantages(config, estimator),
    }


if __name__ == "__main__":
    print("FINGERPRINT " + json.dumps(main(Path(sys.argv[1]), sys.argv[2])))

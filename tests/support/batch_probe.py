"""What a real run dispatches, and what the actor's optimiser steps are made of: noted by a module that verl imports.

``VERL_USE_EXTERNAL_MODULES=tests.support.batch_probe`` loads it in every process; ``SPO_TEST_PROBE`` names the file to
which each note is appended as a line of JSON.
"""

from __future__ import annotations

import functools
import json
import os
from types import ModuleType
from typing import Any

import wrapt

FILE = "SPO_TEST_PROBE"


def note(**entry: Any) -> None:
    with open(os.environ[FILE], "ab", buffering=0) as file:  # one write: several ranks do not mix their lines
        file.write((json.dumps(entry) + "\n").encode())


def names(data: Any, field: str) -> list[str]:
    plain = [item.data if type(item).__name__ == "NonTensorData" else item for item in data[field]]
    return [str(item.item() if hasattr(item, "item") else item) for item in plain]


def rows(data: Any, field: str) -> list[list]:
    return [row.tolist() for row in data[field].unbind()]


def watch_dispatch(module: ModuleType) -> None:
    generate = module.AgentLoopManagerTQ.generate_sequences

    @functools.wraps(generate)
    def noted(self: Any, prompts: Any) -> Any:
        note(dispatched=names(prompts, "uid"), index=[int(one) for one in names(prompts, "index")])
        return generate(self, prompts)

    module.AgentLoopManagerTQ.generate_sequences = noted


def watch_updates(module: ModuleType) -> None:
    import torch
    from verl.utils import tensordict_utils as tu

    train = module.TrainingWorker.train_batch

    @functools.wraps(train)  # verl's marks on the method as well
    def noted(self: Any, data: Any) -> Any:
        note(trained=names(data, "uid"), session=names(data, "session_id"), rank=torch.distributed.get_rank(),
             response=rows(data, "responses"), advantage=rows(data, "advantages"))  # fmt: skip
        return train(self, data)

    module.TrainingWorker.train_batch = noted
    infer = module.TrainingWorker.infer_batch

    @functools.wraps(infer)
    def scored(self: Any, data: Any) -> Any:
        if not tu.get_non_tensor_data(data, "calculate_entropy", True):  # SPO's forward over stored responses
            note(scored=rows(data, "responses"), prompt=rows(data, "prompts"), rank=torch.distributed.get_rank())
        return infer(self, data)

    module.TrainingWorker.infer_batch = scored


wrapt.register_post_import_hook(watch_dispatch, "verl.trainer.ppo.v1.agent_loop_tq")
wrapt.register_post_import_hook(watch_updates, "verl.workers.engine_workers")

"""The engine as verl uses it: found by its name in verl's registry, and through verl's own calls."""

from __future__ import annotations

import asyncio
import pickle

import pytest
import torch

from spo_verl.cpu.weight_transfer import ENGINE_MODULE
from tests.cpu.weight_peers import describe, peers

base = pytest.importorskip("verl.checkpoint_engine.base")
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def engine_class():
    from verl.utils.import_utils import import_external_libs

    import_external_libs(ENGINE_MODULE)
    return base.CheckpointEngineRegistry.get("gloo")


def test_verl_finds_it_by_name_and_gives_it_its_settings(engine_class) -> None:
    assert engine_class.__module__ == ENGINE_MODULE
    assert engine_class.wire_format == "named_tensors"
    engine = base.CheckpointEngineRegistry.new("gloo", is_master=True, bucket_size=4096, timeout_seconds=5)
    meeting = engine.prepare()
    assert meeting.port > 0
    assert pickle.loads(pickle.dumps(meeting)) == meeting  # verl carries it to the other processes through Ray
    engine.finalize()
    assert base.CheckpointEngineRegistry.new("gloo", bucket_size=4096).prepare() is None


def test_the_first_training_process_sends_to_every_rollout_process(engine_class) -> None:
    training, rollout = engine_class.build_topology(3, 2, ["meeting", None, None, None, None])
    assert training == {"rank": [0, -1, -1], "world_size": [3, 3, 3], "meeting": ["meeting"] * 3}
    assert rollout == {"rank": [1, 2], "world_size": [3, 3], "meeting": ["meeting"] * 2}


def test_other_training_processes_only_take_part_in_gathering(engine_class) -> None:
    engine = engine_class(4096)
    engine.init_process_group(-1, 3, "meeting")
    gathered = []

    def gathering():
        for index in range(5):
            gathered.append(index)
            yield f"weight.{index}", torch.ones(2)

    assert asyncio.run(engine.send_weights(gathering(), global_steps=1)) is None
    assert gathered == [0, 1, 2, 3, 4]
    engine.finalize()


def test_two_updates_in_verls_order_of_calls(engine_class) -> None:
    sender = engine_class(1024, is_master=True, timeout_seconds=60)
    with peers(1) as [receiver]:
        for step in (0, 1):
            layer = torch.nn.Linear(40, 30, dtype=torch.bfloat16 if step else torch.float32)
            meeting = sender.prepare()
            [training], [rollout] = (
                [dict(zip(arguments, values, strict=True)) for values in zip(*arguments.values(), strict=True)]
                for arguments in engine_class.build_topology(1, 1, [meeting, None])
            )
            receiver.job("engine", arguments=rollout, step=step)
            sender.init_process_group(**training)
            asyncio.run(sender.send_weights(layer.named_parameters(), global_steps=step))
            with torch.no_grad():
                assert receiver.result() == describe(layer.named_parameters())
            sender.finalize()

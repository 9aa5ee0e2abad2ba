"""verl's Megatron engine on ranks of this machine, next to transformers with the same weights and the same batches.

    python -m tests.cpu.megatron_ranks FOLDER LAYOUT...      writes FOLDER/LAYOUT.json

One process imports everything and forks the ranks of each layout, twice: the second ones load what the first saved.
``SPO_TEST_WITHOUT`` names the target of a workaround that is left out.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS = 3
LENGTHS = (9, 20, 14, 17, 11, 23, 8, 16)
PROMPT = 3
"""Tokens at the beginning of a sequence without a loss."""


@dataclass(frozen=True)
class Layout:
    """How the ranks share the work; their number is ``tensor * pipeline * data``."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    packed: bool = True
    tied: bool = False
    recompute: bool = False
    vanilla: bool = False

    @property
    def ranks(self) -> int:
        return self.tensor * self.pipeline * self.data


LAYOUTS = {
    "one": Layout(),
    "one_padded": Layout(packed=False),
    "one_vanilla": Layout(vanilla=True),
    "tensor": Layout(tensor=2),
    "tensor_padded": Layout(tensor=2, packed=False, tied=True),
    "tensor_vanilla": Layout(tensor=2, vanilla=True),
    "pipeline": Layout(pipeline=2),
    "pipeline_padded": Layout(pipeline=2, packed=False, recompute=True),
    "data": Layout(data=2),
    "data_padded": Layout(data=2, packed=False),
    "both": Layout(tensor=2, pipeline=2, tied=True),
    "both_recompute": Layout(tensor=2, pipeline=2, recompute=True, packed=False),
    "one_recompute": Layout(recompute=True),
}


def build(folder: Path, *, tied: bool) -> None:
    """A Qwen3 model with a rotary base of its own and norms that are not all ones."""
    import torch

    from spo_verl.small.model import ModelShape, build_model, build_tokenizer, save

    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<more>"] * (len(tokenizer) % 2))  # Megatron divides the vocabulary among the ranks
    model = build_model(tokenizer, ModelShape(layers=2), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    save(model, tokenizer, folder)


def engine_of(model: Path, layout: Layout) -> Any:
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import HFModelConfig, McoreEngineConfig, McoreOptimizerConfig
    from verl.workers.engine import EngineRegistry

    whole = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    engine = EngineRegistry.new(
        model_type="language_model",
        backend="megatron",
        model_config=HFModelConfig(path=str(model), load_tokenizer=True, use_remove_padding=layout.packed),
        engine_config=McoreEngineConfig(
            tensor_model_parallel_size=layout.tensor,
            pipeline_model_parallel_size=layout.pipeline,
            sequence_parallel=layout.tensor > 1,
            dtype="float32",
            use_remove_padding=layout.packed,
            vanilla_mbridge=layout.vanilla,
            override_transformer_config=whole if layout.recompute else {},
        ),
        optimizer_config=McoreOptimizerConfig(
            lr=1e-3,
            weight_decay=0.1,
            clip_grad=1.0,
            lr_decay_style="constant",
            total_training_steps=10,
            lr_warmup_steps=0,
            lr_warmup_steps_ratio=0.0,
        ),
        checkpoint_config=CheckpointConfig(
            save_contents=["model", "optimizer", "extra"], load_contents=["model", "optimizer", "extra"]
        ),
    )
    engine.initialize()
    return engine


def batch_of(sequences: list[Any]) -> Any:
    import torch
    from tensordict import TensorDict
    from verl.utils import tensordict_utils as tu
    from verl.utils.dataset.dataset_utils import DatasetPadMode

    def nested(tensors: list[Any]) -> Any:
        return torch.nested.as_nested_tensor(tensors, layout=torch.jagged)

    batch = TensorDict(
        {
            "input_ids": nested(sequences),
            "position_ids": nested([torch.arange(len(one)) for one in sequences]),
            "loss_mask": nested([(torch.arange(len(one)) >= PROMPT).long() for one in sequences]),
            "temperature": torch.ones(len(sequences)),
        },
        batch_size=[len(sequences)],
    )
    tu.assign_non_tensor(
        batch,
        use_dynamic_bsz=False,
        micro_batch_size_per_gpu=2,
        pad_mode=DatasetPadMode.NO_PADDING,
        calculate_entropy=True,
        global_batch_size=len(LENGTHS),
    )
    return batch


def compare(rank: int, layout: Layout, model: Path, folder: Path, *, again: bool) -> dict[str, Any]:
    """What one rank finds; the rank that has the outputs and rank 0 have something to say."""
    from functools import partial

    import torch
    from transformers import AutoModelForCausalLM
    from verl.workers.utils.losses import sft_loss

    engine = engine_of(model, layout)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    torch.manual_seed(3)
    sequences = [torch.randint(3, reference.config.vocab_size, (length,)) for length in LENGTHS]
    mine = slice(engine.get_data_parallel_rank(), None, layout.data)
    batch = batch_of(sequences[mine])
    found: dict[str, Any] = {}

    def step() -> float:
        with engine.train_mode():
            output = engine.train_batch(batch, partial(sft_loss, None))
        engine.lr_scheduler_step()
        return float(output.get("metrics", {}).get("grad_norm", 0.0))  # the rank with the outputs knows it

    def exported() -> dict[str, torch.Tensor]:
        return {name: weight.detach().clone() for name, weight in engine.get_per_tensor_param()[0]}

    def difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
        assert left.keys() == right.keys(), left.keys() ^ right.keys()
        return max(float((left[name] - right[name]).abs().max()) for name in left)

    if again:
        engine.load_checkpoint(str(folder / "checkpoint"), del_local_after_load=False)
        step()
        now = exported()
        if rank == 0:
            found["step_in_new_process"] = difference(now, torch.load(folder / "next.pt"))
        return found

    def log_probs() -> list[torch.Tensor]:
        scores = [reference(one[None]).logits[0].log_softmax(-1) for one in sequences]
        return [score[:-1].gather(1, one[1:, None])[:, 0] for score, one in zip(scores, sequences, strict=True)]

    def note_log_probs(name: str) -> None:
        with engine.eval_mode():
            output = engine.infer_batch(batch)
        if engine.is_mp_src_rank_with_outputs():
            wanted = [one.detach() for one in log_probs()][mine]
            pairs = zip(output["model_output"]["log_probs"].unbind(), wanted, strict=True)
            found[name] = max(float((left[: len(right)] - right).abs().max()) for left, right in pairs)

    # Megatron decays no parameter of one dimension.
    groups = [
        {"params": [one for one in reference.parameters() if one.dim() > 1], "weight_decay": 0.1},
        {"params": [one for one in reference.parameters() if one.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    note_log_probs("log_probs_before")
    norms = []
    for _ in range(STEPS):
        norm = step()
        optimizer.zero_grad()
        loss = -sum(one[PROMPT - 1 :].sum() for one in log_probs()) / sum(length - PROMPT for length in LENGTHS)
        loss.backward()
        norms.append((norm, float(torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0))))
        optimizer.step()
    if engine.is_mp_src_rank_with_outputs():
        found["norms"] = norms
    note_log_probs("log_probs_after")
    trained = exported()
    wanted = {
        name: weight for name, weight in reference.state_dict().items() if not layout.tied or name != "lm_head.weight"
    }
    if rank == 0:
        found["names"] = sorted(trained.keys() ^ wanted.keys())
        found["weights"] = max(float((trained[name] - wanted[name]).abs().max()) for name in trained.keys() & wanted)
    engine.save_checkpoint(str(folder / "checkpoint"), global_step=STEPS)
    step()
    after = exported()
    engine.load_checkpoint(str(folder / "checkpoint"), del_local_after_load=False)
    back = exported()
    step()
    repeated = exported()
    if rank == 0:
        torch.save(after, folder / "next.pt")
        found["moved"] = difference(after, trained)
        found["loaded"] = difference(back, trained)
        found["step_again"] = difference(repeated, after)
    return found


def run_rank(rank: int, layout: Layout, model: Path, folder: Path, again: bool) -> None:
    import torch

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet{int(again)}", rank=rank, world_size=layout.ranks
    )
    with (folder / f"rank{rank}.log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            found = compare(rank, layout, model, folder, again=again)
            (folder / f"rank{rank}_{int(again)}.json").write_text(json.dumps(found))
            torch.distributed.barrier()
        except BaseException:
            traceback.print_exc()
            raise


def run_layout(name: str, folder: Path) -> dict[str, Any]:
    """Both generations of ranks; ``error`` has the ends of the logs if one of them failed."""
    import multiprocessing

    layout, own = LAYOUTS[name], folder / name
    own.mkdir()
    model = folder / ("tied" if layout.tied else "untied")
    found: dict[str, Any] = {}
    for again in (False, True):
        fork = multiprocessing.get_context("fork")
        ranks = [fork.Process(target=run_rank, args=(rank, layout, model, own, again)) for rank in range(layout.ranks)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(120)
            if rank.exitcode != 0:
                for one in ranks:
                    one.kill()
                found["error"] = "\n".join(path.read_text()[-3000:] for path in sorted(own.glob("rank*.log")))
                return found
        for part in sorted(own.glob(f"rank*_{int(again)}.json")):
            for key, value in json.loads(part.read_text()).items():
                found[key] = max(found.get(key, value), value)  # the worst of the data-parallel ranks
    return found


def main(folder: Path, names: list[str]) -> None:
    os.environ.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", LOCAL_RANK="0")
    if without := os.environ.get("SPO_TEST_WITHOUT"):
        from spo_verl.cpu import registry

        hook = registry._hook
        registry._hook = lambda entry: (lambda _module: None) if entry.target == without else hook(entry)
    import torch
    from verl.workers.engine import EngineRegistry

    torch.set_num_threads(1)
    EngineRegistry.get_engine_cls("language_model", "megatron")
    import mbridge  # noqa: F401
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401
    import verl.models.mcore.bridge  # noqa: F401

    for tied in {LAYOUTS[name].tied for name in names}:
        build(folder / ("tied" if tied else "untied"), tied=tied)
    for name in names:
        (folder / f"{name}.json").write_text(json.dumps(run_layout(name, folder)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

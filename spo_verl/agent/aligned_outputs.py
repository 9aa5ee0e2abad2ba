"""Sessions with several outputs, as verl's reward managers expect a batch: prompts padded left, responses right.

verl 0.9.1 hands the outputs of a session to its reward worker with prompt and response joined first and padded after.
The managers take the length of a response from the last columns of the attention mask, where a shorter output has
nothing, so that they score a part of the last response, or an empty text. In a run with
``algorithm.adv_estimator=spo`` the plugin corrects the layout before the manager sees it;
``patches/upstream/aligned-outputs.md`` is the fix for verl.
"""

from __future__ import annotations

from typing import Any

import torch

JOINED = ("input_ids", "attention_mask", "position_ids")
"""Fields of (N, ..., L): prompt, then response, then padding."""


def aligned(data: Any) -> Any:
    """The outputs of one session with every prompt in the first P columns, and every response in the R after them.

    Args:
        data: verl's ``DataProto`` of N outputs: ``prompts`` (N, P) and ``responses`` (N, R) padded on the right,
            :data:`JOINED`, and in ``non_tensor_batch`` ``prompt_len`` and ``response_len``, both (N,).

    Returns:
        A ``DataProto`` of the same outputs, with prompts padded on the left and :data:`JOINED` (N, ..., P + R); the
        given one where it is so already.
    """
    lengths = list(zip(data.non_tensor_batch["prompt_len"], data.non_tensor_batch["response_len"], strict=True))
    batch = data.batch.clone(recurse=False)
    width, response = batch["prompts"].shape[-1], batch["responses"].shape[-1]
    columns = torch.arange(width + response)
    mask = torch.stack([(columns >= width - p) & (columns < width + r) for p, r in lengths])
    if torch.equal(batch["attention_mask"].bool(), mask):
        return data
    batch["prompts"] = torch.zeros_like(data.batch["prompts"])
    for name in JOINED:
        joined = data.batch[name]
        batch[name] = joined.new_zeros((*joined.shape[:-1], width + response))
    for row, (p, r) in enumerate(lengths):
        batch["prompts"][row, width - p :] = data.batch["prompts"][row, :p]
        for name in JOINED:
            batch[name][row, ..., width - p : width + r] = data.batch[name][row, ..., : p + r]
    return type(data)(batch=batch, non_tensor_batch=data.non_tensor_batch, meta_info=data.meta_info)

"""One generated output of a batch, as the divergence of its prompt needs it. Imports neither verl nor TransferQueue."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Output:
    """One generated output of the current batch: what a probe of its prompt needs.

    Pixels and sounds are not here: a prompt's may take megabytes, and most prompts of a step may have nothing stored.
    ``key`` names the trajectory that :class:`spo_verl.training.log_probs.LogProbScorer` fetches them from, for the
    prompts that it scores.
    """

    key: str
    prompt: torch.Tensor
    response: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    old_log_prob: torch.Tensor | None

    @property
    def prompt_hash(self) -> np.uint64:
        """Hash of the prompt's token ids: a stored response is only comparable under the same prompt tokens."""
        tokens = np.ascontiguousarray(self.prompt.numpy(), dtype=np.int64)
        return np.uint64(int.from_bytes(hashlib.blake2b(tokens.tobytes(), digest_size=8).digest(), "little"))

    def sequence(self, response: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        """The fields that verl's engines read, for this prompt followed by ``response``; ``key`` stands for media."""
        prompt_len = self.prompt.size(0)
        # Positions of generated text advance by one in every dimension (rotary sections of multimodal models
        # too), so those of the response at hand tell where any response of this prompt starts.
        start = self.positions[..., prompt_len : prompt_len + 1]
        if start.size(-1) == 0:  # an empty response: text follows its prompt's last token
            start = self.positions[..., prompt_len - 1 : prompt_len] + 1
        generated = start + torch.arange(response.size(0), dtype=self.positions.dtype)
        return {
            "key": self.key,
            "prompts": self.prompt,
            "responses": response,
            "response_mask": mask,
            "loss_mask": mask,
            "input_ids": torch.cat([self.prompt, response]),
            "position_ids": torch.cat([self.positions[..., :prompt_len], generated], dim=-1),
        }

"""One generated output of a batch, as the divergence of its prompt needs it. Imports neither verl nor TransferQueue."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Output:
    """One generated output of the current batch: what a probe of its prompt needs."""

    prompt: torch.Tensor
    response: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    multi_modal: Any
    old_log_prob: torch.Tensor | None

    @property
    def prompt_hash(self) -> np.uint64:
        """Hash of the prompt's token ids: a stored response is only comparable under the same prompt tokens."""
        tokens = np.ascontiguousarray(self.prompt.numpy(), dtype=np.int64)
        return np.uint64(int.from_bytes(hashlib.blake2b(tokens.tobytes(), digest_size=8).digest(), "little"))

    def sequence(self, response: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        """The fields that verl's engines read, for this prompt followed by ``response``."""
        prompt_len = self.prompt.size(0)
        # Positions of generated text advance by one in every dimension (rotary sections of multimodal models
        # too), so those of the response at hand tell where any response of this prompt starts.
        start = self.positions[..., prompt_len : prompt_len + 1]
        if start.size(-1) == 0:  # an empty response: text follows its prompt's last token
            start = self.positions[..., prompt_len - 1 : prompt_len] + 1
        generated = start + torch.arange(response.size(0), dtype=self.positions.dtype)
        return {
            "prompts": self.prompt,
            "responses": response,
            "response_mask": mask,
            "loss_mask": mask,
            "input_ids": torch.cat([self.prompt, response]),
            "position_ids": torch.cat([self.positions[..., :prompt_len], generated], dim=-1),
            "multi_modal_inputs": self.multi_modal,
        }

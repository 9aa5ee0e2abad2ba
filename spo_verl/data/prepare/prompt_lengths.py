"""Prompts in tokens, as verl counts them against ``data.max_prompt_length``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spo_verl.data.libraries import reason_of
from spo_verl.data.prepare.data_errors import SpoDataError


class PromptLimit:
    """Tells which prompts have more tokens than ``data.max_prompt_length`` allows.

    Args:
        model: folder or hub id of the model, for its tokenizer and chat template.
        most: tokens of a prompt at most, at least 1.

    Raises:
        SpoDataError: the tokenizer cannot be loaded, or has no chat template.
    """

    def __init__(self, model: str, most: int) -> None:
        from transformers import AutoTokenizer

        self.model, self.most = model, most
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(model)
        except (OSError, ValueError, TypeError, LookupError, ImportError) as error:
            raise SpoDataError(
                f"the tokenizer of {model} cannot be loaded ({reason_of(error)}): check --model."
            ) from error
        if not self._tokenizer.chat_template:
            raise SpoDataError(f"the tokenizer of {model} has no chat template, which verl renders prompts with.")

    def excess(self, messages: Sequence[Mapping[str, Any]]) -> int | None:
        """Number of tokens of a prompt that is too long; None where it is not.

        Raises:
            SpoDataError: the chat template refuses the messages, e.g. a system prompt.
        """
        from jinja2 import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        except (TemplateError, ValueError, TypeError, LookupError, AttributeError) as error:
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise SpoDataError(
                f"the chat template of {self.model} refuses a prompt with the roles {roles} ({reason_of(error)}): "
                "change the messages, or take another model."
            ) from error
        tokens = len(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return tokens if tokens > self.most else None

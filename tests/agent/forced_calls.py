"""The loop with calls put into the model's mouth, for a real run: an untrained model never writes one that is valid.

The forced tokens get the log-probs that the real server has for them (``prompt_logprobs``), so that the trainer can
compare its own with them, position by position.
"""

from __future__ import annotations

import json
from typing import Any

from verl.workers.rollout.replica import TokenOutput

from spo_verl.agent.loop import CodeInterpreterLoop

PROGRAMS = ("print(6 * 7)", "import sympy; print(sympy.factorint(360))", "1 / 0")


class ForcingServer:
    """Says ``texts`` first, then what the server says."""

    def __init__(self, server: Any, tokenizer: Any, texts: list[str]) -> None:
        self.server, self.tokenizer, self.texts = server, tokenizer, texts

    async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]) -> TokenOutput:
        if not self.texts:
            return await self.server.generate(request_id, prompt_ids=prompt_ids, sampling_params=sampling_params)
        said = self.tokenizer.encode(self.texts.pop(0), add_special_tokens=False)[: sampling_params["max_tokens"]]
        params = {"temperature": 1.0, "max_tokens": 1, "logprobs": True, "prompt_logprobs": 0}
        output = await self.server.generate(request_id, prompt_ids=prompt_ids + said, sampling_params=params)
        known = output.extra_fields.pop("prompt_logprobs")
        output.extra_fields.pop("prompt_ids")
        # entry i is of token i + 1, as the first token of a sequence has no log-prob
        logprobs = [known[len(prompt_ids) - 1 + index][0] for index in range(len(said))]
        return TokenOutput(
            token_ids=said, log_probs=logprobs, stop_reason="completed", extra_fields=output.extra_fields
        )


class StopOnTextLoop(CodeInterpreterLoop):
    """Style ``code`` with a closing tag that an untrained model samples all the time, as it never does ``</code>``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.closing = "pri"

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> Any:
        generate, closing, decode = self.server_manager.generate, self.closing, self._decode

        class Watched:
            """Says how the real server's tokens end."""

            async def generate(self, *args: Any, **kwargs: Any) -> TokenOutput:
                output = await generate(*args, **kwargs)
                ids = output.token_ids
                seen = {"inside": closing in decode(ids[:-1]), "whole": closing in decode(ids), "tokens": len(ids)}
                print("STOPPED " + json.dumps({**seen, "logprobs": len(output.log_probs)}), flush=True)
                return output

        self.server_manager = Watched()
        return await super().run(sampling_params, **kwargs)


class ForcedCallsLoop(CodeInterpreterLoop):
    """Two to three calls, chosen by the row's index, before the model speaks for itself."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> Any:
        index = int(kwargs["extra_info"]["index"])
        programs = PROGRAMS[: 2 + index // 4 % 2]
        texts = [self._call(program) for program in programs]
        self.server_manager = ForcingServer(self.server_manager, self.tokenizer, texts)
        output = await super().run(sampling_params, **kwargs)
        fields = {key: value for key, value in output.extra_fields.items() if key.startswith("interpreter_")}
        print("FORCED " + json.dumps({"index": index, "style": self.style, **fields}), flush=True)
        return output

    def _call(self, program: str) -> str:
        if self.style == "code":
            return f"<code>\n{program}\n</code>"
        call = {"name": self.settings.tool_name, "arguments": {"code": program}}
        return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"

"""The formulae of a plan, each once: what is computed, and what ``--explain`` prints.

A formula is an arithmetic expression over named symbols. It is evaluated as written, so that the printed expression
cannot differ from the computed one.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from spo_verl.errors import SpoArgumentError

Unit = Literal["bytes", "tokens", "FLOP", "sequences", "parameters", "share", "seconds", "updates"]

SYMBOLS: dict[str, str] = {
    "L": "decoder layers",
    "h": "hidden size",
    "f": "intermediate size of the MLP",
    "q": "query width: query heads times head size",
    "k": "key width: key-value heads times head size; values are as wide",
    "n_q": "query heads",
    "n_k": "key-value heads",
    "d": "head size",
    "V": "vocabulary size",
    "e": "1 if input and output embedding are one matrix, else 2",
    "g": "1 if queries and keys are normalised, else 0",
    "b_qkv": "1 if the query, key and value projections have a bias, else 0",
    "b_o": "1 if the output projection has a bias, else 0",
    "b_mlp": "1 if the projections of the MLP have a bias, else 0",
    "P": "parameters",
    "P_l": "parameters of one layer",
    "P_t": "parameters that are trained: P, or those of the LoRA adapters",
    "P_s": "parameters of the largest pipeline stage",
    "N": "parameters of the layers' matrix products, L(2hq + 2hk + 3hf)",
    "lora": "LoRA rank",
    "b_w": "bytes per stored weight of the training engine",
    "b_c": "bytes per number in the computation",
    "b_r": "bytes per weight in the rollout engine",
    "b_kv": "bytes per number in the KV cache",
    "S": "GPUs that share one copy of the training state (FSDP shards)",
    "t": "tensor-parallel size of the training engine",
    "p": "pipeline-parallel size of the training engine",
    "D": "GPUs that share the optimizer state (data times context parallel), 1 without the distributed optimizer",
    "tau": "tensor-parallel size of the rollout engine",
    "pi": "pipeline-parallel size of the rollout engine",
    "E": "rollout engines",
    "G": "training GPUs",
    "G_r": "rollout GPUs",
    "n_gpu": "training GPUs of one node",
    "M": "memory of a GPU",
    "u": "share of it that the rollout engine takes (rollout.gpu_memory_utilization)",
    "X": "memory set aside for what no formula covers (--reserve)",
    "Y_w": "bytes of the weights on one GPU",
    "Y_o": "bytes of the optimizer state on one GPU",
    "B": "prompts per step (data.train_batch_size)",
    "R": "trajectories per step, B times rollout.n",
    "m": "trajectories per mini-batch",
    "epochs": "passes over a step's trajectories (ppo_epochs)",
    "s_p": "tokens of a prompt",
    "s_r": "tokens of a response, tool output included",
    "s": "tokens of a sequence, s_p + s_r",
    "T": "tokens of one training micro-batch on one GPU",
    "T_f": "tokens of one forward-only micro-batch on one GPU",
    "c": "copies of the logits in the computation's precision: 1, one more where the temperature is not 1",
    "c_32": "copies in 32 bits (entropy; with Megatron the cross entropy)",
    "a_l": "saved bytes per token of one layer",
    "r": "1 with gradient checkpointing, else 0",
    "Q": "prompts in the dataset",
    "k_P": "bytes of a prompt's columns in the tracker",
    "s_m": "stored tokens of a response: s_r, at most spo.drift.max_tokens",
    "w": "log-prob columns of the response memory",
    "m_r": "bytes of one stored response",
    "K": "stored responses that are scored per step",
    "C": "floating-point operations of one forward over all trajectories of a step",
    "C_l": "the same without the output embedding",
    "C_k": "floating-point operations of one forward over the stored responses",
    "f_a": "forwards over stored responses",
    "f_n": "forwards over the step's own responses for the divergence",
    "o": "forwards for old log-probs (1, or 0 in bypass mode) and reference log-probs (1 with a KL loss)",
    "C_step": "floating-point operations of a step's training part",
    "C_drift": "floating-point operations of the divergence",
    "H": "1 if the weights are saved in Hugging Face format too, else 0",
    "W_o": "1 if weights are offloaded to the host, else 0",
    "O_o": "1 if the optimizer state is offloaded to the host, else 0",
    "mfu": "--mfu",
    "phi": "peak operations per second of a GPU (--gpu-tflops)",
    "v": "generated tokens per second and rollout GPU (--tokens-per-second)",
}


@dataclass(frozen=True)
class Figure:
    """One number of a plan with where it comes from.

    Attributes:
        formula: name in :data:`FORMULAS`.
        label: what the number is.
        value: in ``unit``.
        inputs: the numbers that were put into the expression, by symbol.
    """

    formula: str
    label: str
    value: float
    unit: Unit
    expression: str
    inputs: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "value": self.value,
            "unit": self.unit,
            "formula": self.formula,
            "expression": self.expression,
            "inputs": dict(self.inputs),
        }


@dataclass(frozen=True)
class Formula:
    """An expression of ``+ - * / //``, ``ceil``, ``floor``, ``min`` and ``max`` over :data:`SYMBOLS`."""

    name: str
    expression: str
    unit: Unit

    def __call__(self, label: str, **inputs: float) -> Figure:
        """The number for these inputs.

        Raises:
            SpoArgumentError: inputs are missing or have no place in the expression.
        """
        wanted = names_of(self.expression)
        if wanted != inputs.keys():
            raise SpoArgumentError(
                f"formula {self.name} = {self.expression} takes {sorted(wanted)}, not {sorted(inputs)}; pass exactly "
                "its symbols."
            )
        return Figure(self.name, label, evaluate(self.expression, inputs), self.unit, self.expression, inputs)


_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_FUNCTIONS: dict[str, Callable[..., float]] = {"ceil": math.ceil, "floor": math.floor, "min": min, "max": max}


@cache
def _parsed(expression: str) -> ast.expr:
    return ast.parse(expression, mode="eval").body


def names_of(expression: str) -> set[str]:
    """The symbols of an expression."""
    return {node.id for node in ast.walk(_parsed(expression)) if isinstance(node, ast.Name)} - _FUNCTIONS.keys()


def evaluate(expression: str, inputs: Mapping[str, float]) -> float:
    """The value of an expression; exact for integers as long as it divides nothing."""
    try:
        return _value(_parsed(expression), inputs)
    except ZeroDivisionError:
        zero = sorted(name for name in names_of(expression) if inputs[name] == 0)
        raise SpoArgumentError(
            f"{expression} divides by 0, as {', '.join(zero)} is 0: set sizes of at least 1 (--explain says which key "
            "a symbol is)."
        ) from None


def _value(node: ast.expr, inputs: Mapping[str, float]) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return node.value
    if isinstance(node, ast.Name):
        return inputs[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left, inputs), _value(node.right, inputs))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
        return _FUNCTIONS[node.func.id](*(_value(argument, inputs) for argument in node.args))
    raise SpoArgumentError(f"{ast.unparse(node)!r} is no part of a formula; use + - * / //, {sorted(_FUNCTIONS)}.")


_TABLE: tuple[tuple[str, str, Unit], ...] = (
    # the model
    ("layer_parameters",
     "2*h*q + 2*h*k + 3*h*f + 2*h + g*2*d + b_qkv*(q + 2*k) + b_o*h + b_mlp*(2*f + h)", "parameters"),
    ("parameters", "L*P_l + e*V*h + h", "parameters"),
    ("lora_parameters", "L*lora*(2*(h + q) + 2*(h + k) + 3*(h + f))", "parameters"),
    ("stage_parameters", "ceil(L/p)*P_l + e*V*h + h", "parameters"),
    # tokens of a step
    ("step_tokens", "R*(s_p + s_r)", "tokens"),
    ("updates_per_step", "epochs*ceil(R/m)", "updates"),
    # training state
    ("fsdp_weights", "P*b_w/S", "bytes"),
    ("fsdp_gradients", "P_t*b_w/S", "bytes"),
    ("fsdp_optimizer", "2*P_t*b_w/S", "bytes"),
    ("fsdp_gathered", "b_c*(2*P_l + e*V*h) + 4*max(P_l, V*h)", "bytes"),
    ("fsdp_gathered_all", "b_c*P + 4*max(P_l, V*h)", "bytes"),
    ("megatron_weights", "b_c*P_s/t", "bytes"),
    ("megatron_gradients", "4*P_s/t", "bytes"),
    ("megatron_optimizer", "12*P_s/(t*D)", "bytes"),
    ("reference_weights", "P*b_w/S", "bytes"),
    ("host_offload", "n_gpu*(W_o*Y_w + O_o*Y_o)", "bytes"),
    # the micro-batch of the update
    ("layer_activations",
     "2*(4 + b_c)*h + 2*b_c*h + g*(4 + b_c)*(q + k) + b_c*(2*q + 2*k) + 4*b_c*f + 4*n_q + 4*(2 + g*(n_q + n_k))",
     "bytes"),
    ("activations", "T*L*a_l", "bytes"),
    ("checkpointed_activations", "T*L*b_c*h", "bytes"),
    ("recomputed_layer", "T*a_l", "bytes"),
    ("megatron_layer_activations", "b_c*(4*h + 4*q + 4*k + 4*f)/t", "bytes"),
    ("megatron_activations", "T*L*a_l", "bytes"),
    ("megatron_checkpointed_activations", "T*L*b_c*h/t", "bytes"),
    ("logits", "T*V*(c*b_c + c_32*4)/t", "bytes"),
    ("logits_forward", "T_f*V*(c*b_c + c_32*4)/t", "bytes"),
    ("forward_layer", "T_f*a_l", "bytes"),
    # rollout
    ("kv_per_token", "2*L*n_k*d*b_kv", "bytes"),
    ("kv_per_token_gpu", "2*ceil(L/pi)*max(1, n_k//tau)*d*b_kv", "bytes"),
    ("rollout_weights", "P*b_r/(tau*pi)", "bytes"),
    ("kv_cache", "u*M - P*b_r/(tau*pi) - X", "bytes"),
    ("concurrent_responses", "E*floor(max(0, u*M - P*b_r/(tau*pi) - X)/(2*ceil(L/pi)*max(1, n_k//tau)*d*b_kv*s))",
     "sequences"),
    # the plugin
    ("tracker", "Q*k_P", "bytes"),
    ("stored_response", "ceil(s_m/8)*(8*(4 + 2*w) + 1) + 20", "bytes"),
    ("response_memory", "Q*m_r", "bytes"),
    ("response_memory_peak", "2*Q*m_r + B*m_r", "bytes"),
    # checkpoint
    ("fsdp_checkpoint", "P*b_w + 2*P_t*b_w + H*2*P", "bytes"),
    ("megatron_checkpoint", "2*P + 12*P_t + H*2*P", "bytes"),
    ("tracker_checkpoint", "Q*(k_P + m_r)", "bytes"),
    # operations
    ("forward", "R*(2*(N + V*h)*s + 2*L*q*s*s)", "FLOP"),
    ("forward_layers", "R*(2*N*s + 2*L*q*s*s)", "FLOP"),
    ("generation", "R*(2*(N + V*h)*s + 2*L*q*s*s)", "FLOP"),
    ("log_probs", "o*C", "FLOP"),
    ("update", "epochs*(3*C + r*C_l)", "FLOP"),
    ("stored_forward", "K*(2*(N + V*h)*(s_p + s_m) + 2*L*q*(s_p + s_m)*(s_p + s_m))", "FLOP"),
    ("drift", "f_a*C_k + f_n*C", "FLOP"),
    ("drift_share", "C_drift/C_step", "share"),
    # time, from what the user assumes
    ("training_time", "C_step/(G*phi*mfu)", "seconds"),
    ("drift_time", "C_drift/(G*phi*mfu)", "seconds"),
    ("generation_time", "R*s_r/(G_r*v)", "seconds"),
)  # fmt: skip

FORMULAS: dict[str, Formula] = {name: Formula(name, expression, unit) for name, expression, unit in _TABLE}


def figure(formula: str, label: str, **inputs: float) -> Figure:
    """A number of the formula of this name, see :class:`Formula`."""
    return FORMULAS[formula](label, **inputs)

"""Megatron's packages, compiled so that they name the CPU where they name CUDA. The files on disk stay as they are.

| in the source | compiled as |
|---|---|
| ``torch.cuda`` | the stand-in of :mod:`spo_verl.cpu.megatron.device` |
| ``x.cuda(...)`` | ``x.cpu()`` |
| ``"cuda"``, ``"nccl"`` | ``"cpu"``, ``"gloo"`` |
| ``"torch.cuda.FloatTensor"`` | ``"torch.FloatTensor"`` |
| ``import triton``, ``import transformer_engine.pytorch`` where they are not optional | names without a content |
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import marshal
import os
import re
import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import cache_from_source
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from spo_verl.cpu.registry import declare
from spo_verl.errors import SpoStateError

PACKAGES = ("megatron.core", "megatron.bridge", "mbridge")
ABSENT = {
    "megatron.bridge.peft.lora": ("transformer_engine.pytorch",),
    "megatron.bridge.peft.lora_layers": ("transformer_engine.pytorch",),
    "megatron.core.inference.contexts.attention_context.triton.tensor_ops": ("triton", "triton.language"),
}
"""Modules that import what there is none of on a CPU without asking first, and are imported by the rest."""

_CUDA = "_spo_cuda"
_DEVICE, _ABSENT = "spo_verl.cpu.megatron.device", "spo_verl.cpu.megatron.absent"
_WORDS = {"cuda": "cpu", "nccl": "gloo"}
_TENSOR = re.compile(r"torch\.cuda\.(\w+Tensor)")


class _ToCpu(ast.NodeTransformer):
    """One module's syntax tree."""

    def __init__(self, module: str) -> None:
        self.absent = ABSENT.get(module, ())

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        if node.attr == "cuda" and isinstance(node.value, ast.Name) and node.value.id == "torch":
            return ast.copy_location(ast.Name(_CUDA, ast.Load()), node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
            node.func.attr, node.args, node.keywords = "cpu", [], []
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if isinstance(node.value, str):
            tensor = _TENSOR.fullmatch(node.value)
            node.value = f"torch.{tensor[1]}" if tensor else _WORDS.get(node.value, node.value)
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt:
        if node.module == "torch.cuda":
            node.module = _DEVICE
        return node

    def visit_Import(self, node: ast.Import) -> ast.stmt:
        for alias in node.names:
            if alias.name in self.absent:
                alias.name, alias.asname = _ABSENT, alias.asname or alias.name
        return node


def to_cpu(source: bytes, path: str, module: str) -> CodeType:
    """Compile a module's source with the changes of the table."""
    tree = ast.parse(source, path)
    return compile(ast.fix_missing_locations(_ToCpu(module).visit(tree)), path, "exec", dont_inherit=True)


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        source = self.get_data(path)
        digest = hashlib.sha256(sys.version.encode() + _OWN + source).digest()
        cached = Path(cache_from_source(path, optimization="spocpu"))
        if cached.exists() and (content := cached.read_bytes()).startswith(digest):
            known: CodeType = marshal.loads(content[len(digest) :])
            return known
        code = to_cpu(source, path, fullname)
        if os.access(cached.parent if cached.parent.exists() else cached.parent.parent, os.W_OK):
            cached.parent.mkdir(exist_ok=True)
            # Ranks compile at the same time; each puts a whole file in place.
            part = cached.with_suffix(f".{os.getpid()}")
            part.write_bytes(digest + marshal.dumps(code))
            part.replace(cached)
        return code

    def exec_module(self, module: ModuleType) -> None:
        setattr(module, _CUDA, importlib.import_module(_DEVICE))
        super().exec_module(module)


class _Finder:
    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not fullname.startswith(PACKAGES):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """Compile Megatron's packages for the CPU when they are imported.

    Raises:
        SpoStateError: one of them is imported already, as it is on disk.
    """
    if early := [name for name in sys.modules if name.startswith(PACKAGES)]:
        raise SpoStateError(
            f"{early[0]} is imported already, as it is for CUDA: with VERL_PLATFORM=cpu import verl before Megatron."
        )
    # After wrapt's finder, which calls this one, and runs the hooks of what is found.
    sys.meta_path.insert(sys.meta_path.index(PathFinder), _Finder)


_OWN = Path(__file__).read_bytes()

declare(
    "megatron-source",
    "megatron.core.parallel_state:initialize_model_parallel",
    parameters=("tensor_model_parallel_size", "pipeline_model_parallel_size"),
    applied="environment",
    apply=install,
)

"""What Megatron's source is compiled as, on small pieces of source; nothing of Megatron is imported."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from spo_verl.cpu.megatron import source

PIECES = [
    ("x = torch.cuda.current_device()", torch.device("cpu")),
    ("x = torch.zeros(1, device=torch.cuda.current_device()).cuda(non_blocking=True).device.type", "cpu"),
    ("x = torch.ones(2).cuda().sum().item()", 2.0),
    ("x = torch.ones(2, device='cuda').device", torch.device("cpu")),
    ("x = dict(backend='nccl', other='cuda:0', text='no cuda here')",
     {"backend": "gloo", "other": "cuda:0", "text": "no cuda here"}),
    ("x = 'torch.cuda.BFloat16Tensor', 'torch.cuda.FloatTensor is'",
     ("torch.BFloat16Tensor", "torch.cuda.FloatTensor is")),
    ("from torch.cuda import _lazy_call, device\nx = []\nwith device(0): _lazy_call(lambda: x.append(1))", [1]),
    ("s = torch.cuda.Stream()\nwith torch.cuda.stream(s):\n    x = s.query() and s.record_event().query()", True),
    ("torch.cuda.synchronize(); torch.cuda.empty_cache(); x = torch.cuda.is_available()", False),
    ("state = torch.cuda.get_rng_state(); a = torch.rand(2)\n"
     "torch.cuda.set_rng_state(state); x = bool((torch.rand(2) == a).all())", True),
    ("x = torch.cuda.default_generators[torch.cuda.current_device()] is torch.default_generator", True),
    ("class Other: cuda = 3\nx = Other.cuda", 3),
]  # fmt: skip


def run(text: str, module: str = "megatron.core.piece") -> dict:
    from spo_verl.cpu.megatron import device

    names: dict = {"torch": torch, "_spo_cuda": device}
    exec(source.to_cpu(text.encode(), "piece.py", module), names)
    return names


@pytest.mark.parametrize(("text", "value"), PIECES)
def test_a_piece_means_the_cpu(text: str, value: object) -> None:
    assert run(text)["x"] == value


def test_names_of_what_is_absent_import_and_refuse_use() -> None:
    module = "megatron.core.inference.contexts.attention_context.triton.tensor_ops"
    text = """
        import triton
        import triton.language as tl
        @triton.jit
        def kernel(size: tl.constexpr): return 5
        @triton.heuristics({"a": 1})
        def other(): return 6
    """
    found = run(textwrap.dedent(text), module)
    assert (found["kernel"](1), found["other"]()) == (5, 6)
    lora = run("import transformer_engine.pytorch as te\nclass Adapter(te.Linear): pass", "megatron.bridge.peft.lora")
    assert isinstance(torch.nn.Linear(1, 1), lora["te"].ops.Linear) is False
    with pytest.raises(NotImplementedError, match="Adapter of Transformer Engine or triton: there is none on a CPU"):
        lora["Adapter"]()
    with pytest.raises(ModuleNotFoundError):  # elsewhere the import is as it was
        run("import transformer_engine.pytorch", "megatron.core.piece")


SCRIPT = """
import importlib, sys
from pathlib import Path
from spo_verl.cpu.megatron import source
source.install()
file = Path("mbridge/__init__.py")

def fresh():
    sys.modules.pop("mbridge", None)
    importlib.invalidate_caches()
    return importlib.import_module("mbridge").x

print(fresh())
[cached] = Path("mbridge/__pycache__").glob("*.opt-spocpu.pyc")
before = cached.stat().st_mtime_ns
print(fresh(), cached.stat().st_mtime_ns == before)
file.write_text("x = 'nccl'")
print(fresh())
source.install()
"""


@pytest.mark.long
def test_packages_are_compiled_once_and_again_when_they_change(tmp_path: Path) -> None:
    (tmp_path / "mbridge").mkdir()
    (tmp_path / "mbridge" / "__init__.py").write_text("import torch\nx = torch.cuda.current_device().type\n")
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout.split("\n") == ["cpu", "cpu True", "gloo", ""], done.stderr[-3000:]
    assert "mbridge is imported already" in done.stderr

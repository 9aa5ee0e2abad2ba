"""The list of seams agrees with the installed verl, and a disagreement is a clear refusal."""

import ast
import dataclasses
import inspect
from pathlib import Path

import pytest

import spo_verl.training
from spo_verl.errors import SpoVersionError
from spo_verl.training import seams
from spo_verl.training.asynchronous import OpenRollouts
from spo_verl.training.order import SeededMiniBatches
from spo_verl.training.trainer import AfterOldLogProb, SpoTrainer

VERL_METHODS = {
    name for name, _ in inspect.getmembers(seams.importlib.import_module(seams._BASE).PPOTrainer, inspect.isfunction)
}


def test_the_installed_verl_has_every_seam():
    assert list(seams.mismatches()) == []
    seams.require()


def test_every_method_that_the_trainer_overrides_is_listed():
    classes = (SpoTrainer, OpenRollouts, SeededMiniBatches, AfterOldLogProb)
    own = {name for cls in classes for name in vars(cls)} & VERL_METHODS
    listed = {
        seam.name.split(".")[1]
        for seam in seams.SEAMS
        if seam.use == "override" and seam.name.startswith("PPOTrainer.")
    }
    assert own == listed


def test_every_name_imported_from_verl_is_listed():
    """A new import of verl in training/ must be added to the list."""
    listed = {(seam.module, seam.name.split(".")[0]) for seam in seams.SEAMS}
    missing = set()
    for path in Path(spo_verl.training.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.ImportFrom)
                and node.module
                and node.module.split(".")[0] in ("verl", "transfer_queue")
            ):
                for alias in node.names:
                    # `from verl.utils import tensordict_utils as tu` imports a module, listed by its functions
                    if (node.module, alias.name) not in listed and not any(
                        seam.module == f"{node.module}.{alias.name}" for seam in seams.SEAMS
                    ):
                        missing.add(f"{path.name}: {node.module}.{alias.name}")
    assert missing == set()


def test_another_verl_is_refused_with_the_versions_that_work(monkeypatch):
    moved = dataclasses.replace(seams.SEAMS[0], signature="(self, config, tokenizer)")
    gone = dataclasses.replace(seams.SEAMS[0], name="PPOTrainer.no_such_method")
    monkeypatch.setattr(seams, "SEAMS", (moved, gone))
    with pytest.raises(SpoVersionError) as refusal:
        seams.require()
    message = str(refusal.value)
    assert "0.9.1" in message
    assert "expected (self, config, tokenizer)" in message
    assert "no_such_method is gone" in message

"""The names of verl that the loop builds on are there, and all of them are listed."""

import ast
import functools
import importlib
import inspect
import textwrap
from pathlib import Path

import pytest

import spo_verl.agent
from spo_verl.agent.loop import VERL_ARGUMENTS
from spo_verl.agent.seams import SEAMS
from spo_verl.training.seams import plain_signature


@pytest.mark.parametrize("seam", SEAMS, ids=lambda seam: seam.name)
def test_the_installed_verl_has_the_name(seam):
    found = functools.reduce(getattr, seam.name.split("."), importlib.import_module(seam.module))
    if seam.signature:
        assert plain_signature(found) == seam.signature


def test_every_name_imported_from_verl_is_listed():
    listed = {(seam.module, seam.name.split(".")[0]) for seam in SEAMS}
    for path in Path(spo_verl.agent.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "verl":
                missing = {(node.module, alias.name) for alias in node.names} - listed
                # AgentLoopBase is listed by its methods
                assert not missing, path


def test_what_verl_gives_every_loop_is_no_setting():
    """``_run_agent_loop`` makes loops by keyword; one that is not known here would be refused as a setting."""
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker

    tree = ast.parse(textwrap.dedent(inspect.getsource(AgentLoopWorker._run_agent_loop)))
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("instantiate")
    ]
    given = {keyword.arg for call in calls for keyword in call.keywords} - {"config"}
    assert given == VERL_ARGUMENTS

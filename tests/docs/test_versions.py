"""docs/compatibility.md and README name the versions that are installed here and those that verl pins."""

import re
from importlib.metadata import requires

import pytest
import tomllib
from packaging.requirements import Requirement

from spo_verl import SUPPORTED_VERL
from tests.docs.pages import DOCS, REPOSITORY, table_rows

COLUMNS = ("package", "run here", "verl 0.9.1 asks for", "seen, on CPUs")
CONSTRAINTS = REPOSITORY / "spo_verl" / "cpu" / "environment" / "constraints.txt"


def here():
    """The versions of the CPU environment, by lower-case name, without labels of builds."""
    found = re.findall(r"^([\w.-]+)==([^\s+]+)", CONSTRAINTS.read_text(), re.MULTILINE)
    return {name.lower(): version for name, version in found}


def rows():
    return {name: cells for name, *cells in table_rows((DOCS / "compatibility.md").read_text(), *COLUMNS)}


def pinned(extra):
    """What verl's extra pins exactly."""
    found = {}
    for text in requires("verl"):
        one = Requirement(text)
        if one.marker is not None and one.marker.evaluate({"extra": extra}) and not one.marker.evaluate({"extra": ""}):
            found.update({one.name.lower(): spec.version for spec in one.specifier if spec.operator == "=="})
    return found


def test_what_was_run_here_is_what_the_environment_pins():
    versions = here()
    compared = {name: run.split(",")[0] for name, (run, *_) in rows().items() if name.lower() in versions}
    assert compared == {name: versions[name.lower()] for name in compared}
    assert {"verl", "torch", "vLLM", "transformers", "Ray", "math-verify"} <= compared.keys()
    assert {"megatron-core", "Python"} <= rows().keys()
    assert rows()["verl"][0] == SUPPORTED_VERL[-1]


def test_what_verls_extras_pin_is_named():
    table, pins = rows(), pinned("vllm")
    for name in ("torch", "vLLM", "transformers"):
        assert table[name][1].endswith(f"extra `vllm`: {pins[name.lower()]}")
    assert pinned("megatron")["megatron-bridge"] == table["megatron-bridge"][1]
    flash = pinned("flash-attn-cu130torch211")["flash-attn"]
    assert f"flash-attn=={flash} " in (DOCS / "compatibility.md").read_text()


@pytest.mark.parametrize("extra", ["vllm", "megatron"])
def test_our_extras_pin_torch_as_verls_do(extra):
    ours = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]
    assert f"torch=={pinned(extra)['torch']}" in ours


def test_the_readme_names_the_same_versions():
    readme, versions = (REPOSITORY / "README.md").read_text(), here()
    assert f"CPU builds of torch {versions['torch']} and vLLM {versions['vllm']}" in readme
    assert "`pip install -e '.[vllm]'`" in readme
    assert "docs/compatibility.md" in readme

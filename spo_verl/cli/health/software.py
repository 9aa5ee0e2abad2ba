"""Versions of what is installed, against what spo_verl and verl ask for."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement

from spo_verl import SUPPORTED_VERL, __version__
from spo_verl.cli.health.findings import Finding

GROUP = "versions"

PACKAGES = ("torch", "verl", "vllm", "ray", "transformers", "TransferQueue", "tensordict", "numpy", "pyarrow")
_OPTIONAL = {
    "vllm": "install the vllm that this verl asks for, or generate with SGLang (actor_rollout_ref.rollout.name=sglang)"
}


def versions() -> Iterator[Finding]:
    """Python, spo_verl and the packages that a run is made of."""
    yield _python()
    yield _spo_verl()
    absent = [package for package in PACKAGES if package not in _OPTIONAL and installed_version(package) is None]
    if "verl" in absent:
        fix = f"pip install verl=={SUPPORTED_VERL[-1]} in this environment; it brings the others"
        yield Finding(GROUP, "verl", "fail", f"not installed: {', '.join(absent)}", f"{fix}, then run this again")
    for package in PACKAGES:
        if "verl" not in absent or package not in absent:
            yield package_finding(package)


def package_finding(package: str) -> Finding:
    """One package: installed, and within what spo_verl and verl declare to need."""
    required = list(requirements_for(package))
    found = installed_version(package)
    if found is None:
        if package in _OPTIONAL:
            return Finding(GROUP, package, "warn", "not installed", _OPTIONAL[package])
        wanted = str(required[0][1]) if required else package
        return Finding(GROUP, package, "fail", "not installed", f"pip install '{wanted}'")
    for owner, requirement in required:
        if not requirement.specifier.contains(found, prereleases=True):
            what = f"{found}; {owner} needs {requirement.specifier}"
            return Finding(GROUP, package, "fail", what, f"pip install '{requirement.name}{requirement.specifier}'")
    if package == "verl" and found not in SUPPORTED_VERL:
        tested = ", ".join(SUPPORTED_VERL)
        fix = f"tested with {tested}; if a seam below is not ok: pip install verl=={SUPPORTED_VERL[-1]}"
        return Finding(GROUP, package, "warn", found, fix)
    return Finding(GROUP, package, "ok", found)


def requirements_for(package: str) -> Iterator[tuple[str, Requirement]]:
    """What spo_verl and verl declare to need of a package, extras left aside."""
    for owner in ("spo-verl", "verl"):
        try:
            declared = distribution(owner).requires or []
        except PackageNotFoundError:
            continue
        for text in declared:
            requirement = Requirement(text)
            here = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if here and requirement.name.lower() == package.lower():
                yield owner, requirement


def installed_version(package: str) -> str | None:
    """The version that the package's metadata gives, or None."""
    try:
        return distribution(package).version
    except PackageNotFoundError:
        return None


def _python() -> Finding:
    version, system = platform.python_version(), f"{platform.system()} {platform.machine()}"
    found = f"{version} on {system}, {sys.executable}"
    if not (3, 10) <= sys.version_info[:2] < (3, 13):
        return Finding(GROUP, "python", "fail", found, "verl needs Python 3.10, 3.11 or 3.12")
    if platform.system() != "Linux":
        return Finding(GROUP, "python", "warn", found, "verl and vLLM run on Linux; start training there")
    return Finding(GROUP, "python", "ok", found)


def _spo_verl() -> Finding:
    installed = installed_version("spo-verl")
    if installed is None:
        fix = "verl finds plugins by their installed metadata: pip install -e . in a checkout"
        return Finding(GROUP, "spo_verl", "fail", f"{__version__}, imported but not installed", fix)
    if installed != __version__:
        fix = "install again: pip install -e . in the checkout"
        return Finding(GROUP, "spo_verl", "warn", f"{__version__}, installed metadata say {installed}", fix)
    return Finding(GROUP, "spo_verl", "ok", __version__)

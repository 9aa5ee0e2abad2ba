"""Judge what the probes saw of verl: the plugin, the seams, the CPU workarounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points

from spo_verl import SUPPORTED_VERL
from spo_verl.cli.health.findings import Finding
from spo_verl.cli.health.processes import Answers

PLUGIN, SEAMS, CPU = "plugin", "seams", "CPU"
MISMATCHES = 5
"""How many names that do not match are shown one by one."""
_REINSTALL = "install spo_verl in the environment of this verl: pip install -e . in a checkout"


def entry_point_finding() -> Finding:
    """The entry point by which verl finds the plugin."""
    found = [entry.value for entry in entry_points(group="verl.plugins") if entry.name == "spo"]
    if not found:
        return Finding(PLUGIN, "entry point", "fail", "no 'spo' in the group verl.plugins", _REINSTALL)
    return Finding(PLUGIN, "entry point", "ok", ", ".join(found))


def policy_finding(environ: Mapping[str, str]) -> Finding:
    """verl loads all plugins, none, or those that the environment names."""
    name = "VERL_USE_EXTERNAL_PLUGINS"
    policy = environ.get(name, "auto").strip().lower()
    allowed = policy == "auto" or "spo" in [part.strip() for part in policy.split(",")]
    found = policy if name in environ else "not set, so verl loads every plugin"
    fix = "" if allowed else f"unset {name}, or set it to auto or to a list with spo"
    return Finding(PLUGIN, name, "ok" if allowed else "fail", found, fix)


def plugin_findings(answers: Answers) -> Iterator[Finding]:
    """What the plugin has done inside an import of verl."""
    why = "; ".join(answers.remarks)
    if "verl_import" in answers.errors:
        fix = f"{why or 'correct the import first'}; pip install verl=={SUPPORTED_VERL[-1]}"
        yield Finding(PLUGIN, "import verl", "fail", answers.errors["verl_import"], fix)
        return
    verl = answers.values["verl_import"]
    yield Finding(PLUGIN, "import verl", "ok", f"{verl['version']} in {verl['path']}")
    estimator = answers.values.get("estimator")
    if estimator is None:
        found = answers.errors.get("estimator", "'spo' is not in verl's registry")
        yield Finding(PLUGIN, "estimator spo", "fail", found, why or f"the plugin was not loaded; {_REINSTALL}")
    else:
        yield Finding(PLUGIN, "estimator spo", "ok", f"registered: {estimator}")
    presets = (answers.values.get("groups") or {}).get("spo", [])
    if presets:
        yield Finding(PLUGIN, "presets", "ok", ", ".join(f"+spo={name}" for name in presets))
    else:
        found = answers.errors.get("groups", "hydra does not know the group spo")
        yield Finding(PLUGIN, "presets", "fail", found, why or _REINSTALL)


def seam_findings(answers: Answers) -> Iterator[Finding]:
    """The names of verl that the plugin builds on."""
    fix = f"spo_verl works with verl {', '.join(SUPPORTED_VERL)}: pip install verl=={SUPPORTED_VERL[-1]}"
    if "verl_import" in answers.errors:
        yield Finding(SEAMS, "verl's names", "fail", "not compared: verl cannot be imported", "see import verl above")
        return
    if "seams" in answers.errors:
        yield Finding(SEAMS, "verl's names", "fail", answers.errors["seams"], fix)
        return
    seams = answers.values["seams"]
    shown, more = seams["mismatches"][:MISMATCHES], len(seams["mismatches"]) - MISMATCHES
    for mismatch in shown:
        yield Finding(SEAMS, "verl's names", "fail", mismatch, fix)
    if more > 0:
        yield Finding(SEAMS, "verl's names", "fail", f"and {more} more of {seams['count']}", fix)
    if not seams["mismatches"]:
        yield Finding(SEAMS, "verl's names", "ok", f"all {seams['count']} as expected")


def workaround_findings(answers: Answers) -> Iterator[Finding]:
    """What is changed in verl and vLLM on a CPU, if VERL_PLATFORM asks for one."""
    name = "workarounds"
    if "workarounds" in answers.errors:
        yield Finding(CPU, name, "fail", answers.errors[name], _CONSTRAINTS)
    elif (found := answers.values[name]) is None:
        yield Finding(CPU, name, "ok", "inactive: VERL_PLATFORM is not cpu")
    else:
        for problem in found["problems"]:
            yield Finding(CPU, name, "fail", problem, _CONSTRAINTS)
        if not found["problems"]:
            yield Finding(CPU, name, "ok", f"{len(found['names'])} active: {', '.join(found['names'])}")


_CONSTRAINTS = (
    "install the versions of spo_verl/cpu/environment/constraints.txt, or leave VERL_PLATFORM unset on a machine "
    "with an accelerator"
)

"""What the recipes of the package need: themselves, their reward, their logger, and each engine's packages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from spo_verl.cli.health.findings import Finding
from spo_verl.cli.health.processes import Answers
from spo_verl.cli.health.software import installed_version
from spo_verl.conf import chosen_platform

GROUP = "recipes"
TRANSFORMER_ENGINE = "transformer-engine"
MEGATRON = ("megatron-core", "mbridge", TRANSFORMER_ENGINE)
BRIDGE = "megatron-bridge"
FLASH = "flash-attn"
_FLASH_FIX = "pip install flash-attn==2.8.3 --no-build-isolation, after torch: FSDP's attention on an accelerator"

Version = Callable[[str], str | None]


def recipe_findings(
    answers: Answers, devices: Answers, environ: Mapping[str, str], version: Version = installed_version
) -> Iterator[Finding]:
    """The recipes, the first reward, data, logger, and the packages of FSDP and Megatron."""
    yield _recipes()
    yield _reward(answers)
    yield _data(environ)
    yield _logger(version)
    yield _flash(devices, environ, version)
    yield _megatron(environ, version)


def _recipes() -> Finding:
    from spo_verl.launching.recipes import ROOT_VARIABLE, known_recipes

    known = known_recipes()
    if not known:
        return Finding(GROUP, "recipes", "fail", "none were found",
                       f"install spo-verl again, or correct {ROOT_VARIABLE}")  # fmt: skip
    roots = ", ".join(dict.fromkeys(str(root) for root in known.values()))
    return Finding(GROUP, "recipes", "ok", f"{len(known)} in {roots}")


def _reward(answers: Answers) -> Finding:
    fix = "pip install 'math-verify[antlr4-9-3]'; without it a recipe fails at its first reward"
    if "first_reward" in answers.errors:
        return Finding(GROUP, "reward", "fail", answers.errors["first_reward"], fix)
    graded = answers.values["first_reward"]
    if graded["right"] != 1.0 or graded["wrong"] != 0.0:
        return Finding(GROUP, "reward", "fail", f"1/2 for 0.5 gets {graded['right']}, 1/3 {graded['wrong']}", fix)
    return Finding(GROUP, "reward", "ok", f"grades a right and a wrong answer (math-verify {graded['version']})")


def _data(environ: Mapping[str, str]) -> Finding:
    folder = Path(environ.get("SPO_DATA_DIR") or "data")
    try:
        files = sum(1 for _ in folder.glob("*.parquet"))
    except OSError:
        files = 0
    found = f"{files} Parquet files in {folder}"
    if files or not environ.get("SPO_DATA_DIR"):
        return Finding(GROUP, "data", "ok", found if files else f"none in {folder} yet: spo-verl data prepare")
    return Finding(
        GROUP, "data", "warn", found, "SPO_DATA_DIR names the folder that `spo-verl data prepare` wrote into"
    )


def _logger(version: Version) -> Finding:
    found = version("tensorboard")
    if found is None:
        fix = "pip install tensorboard, or launch with trainer.logger=[console]"
        return Finding(GROUP, "tensorboard", "fail", "not installed", fix)
    return Finding(GROUP, "tensorboard", "ok", found)


def _flash(devices: Answers, environ: Mapping[str, str], version: Version) -> Finding:
    found = version(FLASH)
    if found is not None:
        return Finding(GROUP, FLASH, "ok", found)
    cuda = bool((devices.values.get("torch_device") or {}).get("cuda"))
    if chosen_platform(environ) == "cpu" or not cuda:
        return Finding(GROUP, FLASH, "ok", "not installed; needed on an accelerator only")
    return Finding(GROUP, FLASH, "warn", "not installed", _FLASH_FIX)


def _megatron(environ: Mapping[str, str], version: Version) -> Finding:
    found = {package: version(package) for package in (*MEGATRON, BRIDGE)}
    there = ", ".join(f"{package} {number}" for package, number in found.items() if number is not None)
    if found["megatron-core"] is None:
        text = "not installed; needed for model_engine=megatron only: pip install -e '.[megatron]' in a checkout"
        return Finding(GROUP, "Megatron", "ok", text)
    absent = [package for package in MEGATRON if found[package] is None]
    if chosen_platform(environ) == "cpu" and absent == [TRANSFORMER_ENGINE]:
        absent = []  # a CPU has its layers in plain torch
    if absent:
        return Finding(GROUP, "Megatron", "warn", f"{there}; absent: {', '.join(absent)}",
                       "pip install -e '.[megatron]' in a checkout, for model_engine=megatron")  # fmt: skip
    if found[BRIDGE] is None:
        fix = "pip install --no-deps megatron-bridge, or actor_rollout_ref.actor.megatron.vanilla_mbridge=True"
        return Finding(GROUP, "Megatron", "warn", f"{there}; absent: {BRIDGE}", fix)
    return Finding(GROUP, "Megatron", "ok", there)

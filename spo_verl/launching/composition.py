"""verl's configuration as ``python -m verl.trainer.main_ppo`` would compose it, and where its values come from."""

from __future__ import annotations

import copy
import difflib
import functools
import io
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigTypeError, OmegaConfBaseException

from spo_verl.conf import PRESETS
from spo_verl.config import SpoConfig, known_keys, no_such_setting
from spo_verl.launching import hydra_side, named_files
from spo_verl.launching.hydra_side import one_line

PRESET_GROUP = "spo"
ESTIMATOR = "spo"
STOCK = "ppo_trainer"
_ABSENT = object()


@dataclass(frozen=True)
class Composed:
    """A composed configuration.

    Attributes:
        config: verl's configuration, without hydra's own section.
        preset: name of the preset that was chosen, on the command line or in a configuration file.
        overridden: the keys that the command line sets.
        problems: overrides that hydra refused, each as a sentence; they are left out of ``config``.
        mistyped: keys that hold a section, a number or a truth value in verl's configuration and here something else,
            each with the sentence.
    """

    config: DictConfig
    preset: str | None
    overridden: tuple[str, ...]
    problems: list[str] = field(default_factory=list)
    mistyped: dict[str, str] = field(default_factory=dict)

    def source(self, key: str) -> str:
        """Where the value of ``key`` comes from."""
        if any(key == name or key.startswith(f"{name}.") for name in self.overridden):
            return "command line"
        try:
            absent = OmegaConf.select(self.config, key, default=_ABSENT) is _ABSENT
        except ConfigTypeError:  # the section is a plain value, which is reported as a problem
            absent = True
        except OmegaConfBaseException:  # a reference to nothing, which is reported as a problem
            absent = False
        if absent:
            return "default"
        if self.preset is not None and key in preset_keys(self.preset):
            # A configuration file of the user's that names the preset wins over it.
            found = OmegaConf.select(self.config, key, throw_on_resolution_failure=False)
            same = found == preset_values(self.preset)[key]
            return f"preset {self.preset}" if same else "configuration file"
        return "configuration file" if key.startswith("spo.") else "verl"

    @functools.cached_property
    def dangling(self) -> dict[str, str]:
        """Keys whose value refers to something that cannot be resolved, each with what to say of it."""
        return dict(_dangling(self.config))

    @functools.cached_property
    def left_out(self) -> set[str]:
        """The keys that ``readable`` lacks."""
        return {*self.mistyped, *self.dangling}

    @functools.cached_property
    def readable(self) -> DictConfig:
        """``config`` without the keys of a wrong type and those that cannot be resolved."""
        return _without(self.config, self.left_out)


@dataclass(frozen=True)
class Examined:
    """What :func:`examine` found: every problem that would stop the run, and the warnings that it would give."""

    problems: list[str]
    warnings: list[str]


def compose(
    overrides: Sequence[str],
    *,
    config_name: str,
    config_dir: Path | None = None,
    config_path: str | None = None,
    search: Sequence[Path] = (),
    known_good: Sequence[str] = (),
) -> Composed:
    """Compose verl's stock configuration with command-line overrides, without the import of verl.

    Args:
        overrides: as after ``python -m verl.trainer.main_ppo``.
        config_name: as hydra's ``--config-name``.
        config_dir: a further folder of configuration files, as hydra's ``--config-dir``.
        config_path: as hydra's ``--config-path``; relative to verl's ``trainer`` folder.
        search: folders that follow on hydra's search path.
        known_good: overrides that precede the others and are not reported.

    Raises:
        SpoConfigError: there is no such configuration, or it does not compose even without the overrides.
    """
    places = hydra_side.Places(config_path, config_dir, tuple(search))
    taken = hydra_side.take([*known_good, *overrides], config_name=config_name, places=places)
    choice = taken.choices.get(PRESET_GROUP)
    own = config_name != STOCK or config_dir is not None or config_path is not None
    plain, *others = (
        OmegaConf.to_container(one, resolve=False) for one in (taken.config, taken.before, *([_stock()] if own else []))
    )
    return Composed(
        taken.config,
        None if choice is None else str(choice),
        tuple(taken.keys),
        [_refused(override, error, taken.config) for override, error in taken.refused],
        {key: why for other in others for key, why in _mistyped(other, plain)},
    )


def examine(composed: Composed) -> Examined:
    """Check a composed configuration as the start of a run does.

    Everything that :func:`spo_verl.training.checks.check` refuses or warns of, after what hydra refused.
    """
    from spo_verl.training import checks

    problems = list(composed.problems)
    estimator = OmegaConf.select(composed.readable, "algorithm.adv_estimator", default=None)
    if estimator != ESTIMATOR and not composed.left_out & {"algorithm", "algorithm.adv_estimator"}:
        problems.append(checks.other_estimator(composed.readable))
    dangling = composed.dangling
    problems += [f"{key}: {why}; correct the reference, or set {key}." for key, why in dangling.items()]
    problems += [why for key, why in composed.mistyped.items() if key not in dangling]
    _, refused, remarks = checks.find(composed.readable, composed.left_out)
    return Examined([*problems, *refused], remarks)


def examine_files(composed: Composed, *, whole: bool) -> Examined:
    """Look for the files and folders that a configuration names, on this machine.

    Args:
        whole: the configuration is all of a run's, so that a key left at verl's default is meant.
    """
    problems: list[str] = []
    remarks: list[str] = []
    defaults: list[str] = []
    stock = dict(_stock_paths())
    for fault in named_files.faults(composed.readable):
        if not whole and OmegaConf.select(composed.readable, fault.key) == stock.get(fault.key, _ABSENT):
            defaults.append(fault.key)
        else:
            (problems if fault.stops else remarks).append(fault.text)
    if defaults:
        remarks.append(
            f"not set, and verl's default is not on this machine: {', '.join(defaults)}. Give the whole command line "
            "with --verl to have this count as a problem."
        )
    return Examined(problems, remarks)


def _stock_paths() -> Iterator[tuple[str, Any]]:
    """The places that verl's own configuration names."""
    folder = hydra_side.verl_trainer_folder() / hydra_side.STOCK_PATH
    for section, file in (("data", "data/legacy_data.yaml"), ("actor_rollout_ref.model", "model/hf_model.yaml")):
        for key, value in leaves(OmegaConf.load(folder / file), section):
            if isinstance(value, str):
                yield key, value


def verl_problem(config: DictConfig) -> str | None:
    """What verl's own check of the configuration refuses; it stops at its first problem."""
    from hydra.errors import InstantiationException
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    try:
        validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    except InstantiationException as error:  # a dataclass of verl refused; what it said is the cause
        return f"verl's own check: {one_line(error.__cause__ or error)}"
    except (AssertionError, ValueError, OmegaConfBaseException) as error:
        return f"verl's own check: {one_line(error)}"
    except (AttributeError, TypeError, LookupError, ArithmeticError) as error:  # it takes types for granted
        return f"verl's own check ends in {type(error).__name__}: {one_line(error)}; a key has a value of another type"
    return None


def rollout_warnings(config: DictConfig) -> Iterator[str]:
    """What verl's check lets pass and ends a run without it, after Ray and the model have been loaded.

    Args:
        config: one that verl's check accepts.
    """
    rollout = "actor_rollout_ref.rollout"
    if _found(config, f"{rollout}.name") is None:
        yield f"{rollout}.name is not set, and verl has no default for it; set {rollout}.name=vllm."
    apart = _found(config, "trainer.v1.trainer_mode") == "separate_async"
    if apart and _found(config, "actor_rollout_ref.hybrid_engine") is False:
        return  # no rollout engines on the training processes
    sizes = {
        name: _count(config, f"{rollout}.{name}_parallel_size") for name in ("tensor_model", "data", "pipeline_model")
    }
    size = math.prod(sizes.values())
    processes = _count(config, "trainer.nnodes") * _count(config, "trainer.n_gpus_per_node")
    if size and processes and processes % size:
        split = " * ".join(f"{name}_parallel_size={one}" for name, one in sizes.items() if one > 1)
        yield (
            f"{processes} training process{'es' if processes > 1 else ''} (trainer.nnodes * trainer.n_gpus_per_node) "
            f"cannot be split into rollout engines of {size} ({rollout}: {split}); choose sizes whose product divides "
            f"{processes}, such as {rollout}.tensor_model_parallel_size=1 (verl's default is 2)."
        )


def _found(config: DictConfig, key: str) -> Any:
    """A value, None where there is none."""
    return OmegaConf.select(config, key, default=None, throw_on_resolution_failure=False, throw_on_missing=False)


def _count(config: DictConfig, key: str) -> int:
    """A number from 1 on; 0 where the value is something else."""
    value = _found(config, key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def problems_of(composed: Composed) -> list[str]:
    """What would stop the start of a run: our checks (for SPO's estimator) and verl's own."""
    ours = examine(composed).problems if uses_spo(composed.config) else composed.problems
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():  # verl's check prints that all is well
        warnings.simplefilter("ignore")
        theirs = verl_problem(composed.config)
    return [*ours, *([] if theirs is None else [theirs])]


def uses_spo(config: DictConfig) -> bool:
    """Whether a run with this configuration trains with SPO."""
    try:
        return str(OmegaConf.select(config, "algorithm.adv_estimator")) == ESTIMATOR
    except OmegaConfBaseException:  # a reference to nothing, which verl's own check refuses
        return False


def type_problems(before: DictConfig, after: DictConfig) -> list[str]:
    """Keys whose value has another type than the one that it replaces, on which verl fails later.

    What was null may become anything, and anything may become null.

    Args:
        before: a configuration that works.
        after: the same with overrides.
    """
    problems = []
    for key, new in leaves(after):
        old = OmegaConf.select(before, key, default=None, throw_on_resolution_failure=False)
        if OmegaConf.is_config(old):
            old = OmegaConf.to_container(old, resolve=False)
        if new is None or old is None or "${" in f"{old}{new}":
            continue
        wanted = next((name for kind, name in _KINDS.items() if isinstance(old, kind)), None)
        if wanted is not None and not _fits(old, new):
            problems.append(f"{key}={new}: it has to be {wanted}, such as {old}")
    return problems


_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a section",
}


def _fits(old: Any, new: Any) -> bool:
    if isinstance(old, bool) or isinstance(new, bool):
        return isinstance(old, bool) and isinstance(new, bool)
    if isinstance(old, int):
        return isinstance(new, int) or (isinstance(new, float) and new.is_integer())
    if isinstance(old, float):
        return isinstance(new, int | float) and not math.isnan(new)
    if isinstance(old, str):
        return not isinstance(new, list | dict)
    return isinstance(new, type(old))


def setting_values(config: DictConfig) -> dict[str, Any]:
    """Every setting of the plugin as the run would use it; values that are wrong are shown as they are."""
    defaults = SpoConfig()
    values = {}
    for key in known_keys():
        default: Any = defaults
        for part in key.split(".")[1:]:
            default = getattr(default, part)
        try:
            found = OmegaConf.select(config, key, default=default, throw_on_resolution_failure=False)
        except OmegaConfBaseException:  # e.g. spo=paper made the section a text; that is reported as a problem
            found = default
        values[key] = _shown(found)
    return values


def _shown(found: Any) -> Any:
    """A value as plain data: resolved, or as it is written where it cannot be."""
    if not OmegaConf.is_config(found):
        return found
    try:
        return OmegaConf.to_container(found, resolve=True)
    except OmegaConfBaseException:
        return OmegaConf.to_container(found, resolve=False)


def unknown_settings(config: DictConfig) -> dict[str, Any]:
    """Keys under ``spo`` that are no setting of the plugin."""
    section = OmegaConf.select(config, "spo", default=None)
    known = set(known_keys())
    if not isinstance(section, DictConfig):
        return {}
    return {key: value for key, value in leaves(section, "spo") if not _belongs(key, known)}


def preset_keys(name: str) -> set[str]:
    """The keys that a preset sets, those of the presets that it builds on included."""
    return set(preset_values(name))


def preset_values(name: str) -> dict[str, Any]:
    """What a preset sets, that of the presets that it builds on included, by key."""
    path = PRESETS / f"{name}.yaml"
    if not path.exists():
        return {}
    content = OmegaConf.load(path)
    assert isinstance(content, DictConfig)
    bases = [base for base in content.pop("defaults", []) if base != "_self_"]
    values: dict[str, Any] = {}
    for base in bases:
        values |= preset_values(str(base))
    return values | dict(leaves(content))


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything below a section or a dictionary, not resolved; empty sections are values."""
    plain: Any = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
    for key, value in plain.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, dict) and value:
            yield from leaves(value, name)
        else:
            yield name, value


@functools.cache
def _stock() -> DictConfig:
    """verl's own configuration."""
    return hydra_side.take([], config_name=STOCK, places=hydra_side.Places()).config


def _mistyped(theirs: Any, given: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield each key outside ``spo`` with something else where verl's configuration has a section or a number."""
    for name, old in theirs.items():
        key, new = f"{prefix}{name}", given.get(name)
        if new is None or key in ("spo", "hydra") or (isinstance(new, str) and "${" in new):
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _mistyped(old, new, f"{key}.")
        elif isinstance(old, dict) and old:
            yield key, f"{key}={new}: it has to be a section, with keys such as {next(iter(old))}."
        elif isinstance(old, bool | int | float) and isinstance(new, str | list | dict) and "${" not in str(new):
            kind = next(name for type_, name in _KINDS.items() if isinstance(old, type_))
            yield key, f"{key}={new}: it has to be {kind}, such as {old}."


def _refused(override: str, error: Exception, config: DictConfig) -> str:
    key = override.partition("=")[0]
    if key == PRESET_GROUP:
        return f"{override}: a preset is added, so it needs the plus sign: +{override}."
    if key.startswith("spo.") and key not in set(known_keys()):
        return no_such_setting(override, key, known_keys(), "`spo-verl settings` lists those that exist.")
    if "=" not in override and not override.startswith("~"):
        return f"{override}: an override is key=value; give what follows main_ppo on the command line of the run."
    text = one_line(error)
    if key.lstrip("+") == PRESET_GROUP and text.startswith("Multiple values"):
        return f"{override}: a run has one preset, and another one was given before: delete one of the two."
    if key == f"+{PRESET_GROUP}" and "Could not find" in text:
        presets = sorted(path.stem for path in PRESETS.glob("*.yaml"))
        close = difflib.get_close_matches(override.partition("=")[2], presets, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{override}: there is no such preset. {hint.capitalize()}Available: {' '.join(presets)}"
    if text.startswith("Could not override"):
        close = difflib.get_close_matches(key, [name for name, _ in leaves(config)], n=1, cutoff=0.8)
        text = f"did you mean {close[0]}? {text}" if close else text
    return f"{override}: {text}"


def _dangling(config: DictConfig) -> Iterator[tuple[str, str]]:
    """Yield each key whose value refers to something that is not there, and what. verl resolves all at start."""
    for key, value in leaves(config):
        if "${" in str(value):
            try:
                found = OmegaConf.select(config, key)
                if OmegaConf.is_config(found):
                    OmegaConf.to_container(found, resolve=True)
            except OmegaConfBaseException as error:
                yield key, f"{value} cannot be resolved ({str(error).partition(chr(10))[0]})"


def _without(config: DictConfig, keys: Iterable[str]) -> DictConfig:
    """A copy that lacks some keys, so that the others can be checked."""
    reduced = copy.deepcopy(config)
    OmegaConf.set_struct(reduced, False)
    for key in keys:
        parent, _, name = key.rpartition(".")
        section = OmegaConf.select(reduced, parent) if parent else reduced
        del section[name]
    return reduced


def _belongs(key: str, known: set[str]) -> bool:
    return key in known or any(key.startswith(f"{name}.") for name in known)

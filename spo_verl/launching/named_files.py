"""Files and folders that a configuration names, looked for on this machine before a run is started.

What verl 0.9.1 accepts where: ``hdfs://`` and other addresses are fetched by verl and not looked for; a model may be an
id of the Hugging Face hub; reward functions may be modules (``pkg://``); files of tools are also looked for below
verl's package (``verl.utils.import_utils.resolve_config_path``).
"""

from __future__ import annotations

import ast
import difflib
import glob
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spo_verl.config import still_to_estimate
from spo_verl.errors import SpoConfigError
from spo_verl.files import parquet_file

ROLLOUT, MODEL = "actor_rollout_ref.rollout", "actor_rollout_ref.model"
FUNCTIONS = {
    # key of the file: key of the name in it, default of that name
    "reward.custom_reward_function.path": ("reward.custom_reward_function.name", "compute_score"),
    "custom_reward_function.path": ("custom_reward_function.name", None),
    "data.custom_cls.path": ("data.custom_cls.name", None),
    "trainer.v1.sampler.custom_sampler.path": ("trainer.v1.sampler.custom_sampler.name", None),
    "reward.reward_manager.module.path": ("reward.reward_manager.name", None),
}
CONFIGURATIONS = (
    f"{ROLLOUT}.multi_turn.tool_config_path",
    f"{ROLLOUT}.multi_turn.function_tool_path",
    f"{ROLLOUT}.multi_turn.interaction_config_path",
    f"{ROLLOUT}.agent.agent_loop_config_path",
    f"{ROLLOUT}.router_config_path",
    f"{ROLLOUT}.quantization_config_file",
)
MODELS = (
    f"{MODEL}.path",
    f"{MODEL}.tokenizer_path",
    f"{MODEL}.hf_config_path",
    "data.tokenizer",
    "reward.reward_model.model_path",
    "reward_model.model.path",
)
ADAPTERS = (f"{MODEL}.lora_adapter_path", f"{MODEL}.lora.adapter_path")
TEMPLATE = f"{MODEL}.custom_chat_template"
FEATURES = "spo.value.features"
DATA_ENDINGS = (".parquet", ".json", ".jsonl")

_NEEDED: dict[str, str | None] = {
    f"{MODEL}.tokenizer_path": None,
    "data.tokenizer": None,
    **dict.fromkeys(ADAPTERS, "adapter_config.json"),
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Fault:
    """A file that is named and cannot be used.

    Attributes:
        key: the key that names it.
        text: what is wrong and how to correct it; begins with the key.
        stops: whether the run stops over it.
    """

    key: str
    text: str
    stops: bool = True


def faults(config: DictConfig) -> Iterator[Fault]:
    """Yield every file or folder in ``config`` that is missing, or is not what verl needs."""
    for key in ("data.train_files", "data.val_files"):
        value = _value(config, key)
        files = _listed(value)
        if value is not None and not files:
            yield Fault(key, f"{key}={value}: name a file, or a list of files.")
        for file in files:
            yield from _faults(key, file, _data_fault(config, file))
    for key, (name_key, name) in FUNCTIONS.items():
        path = _value(config, key)
        if key.startswith("reward.reward_manager") and _value(config, "reward.reward_manager.source") != "importlib":
            continue
        if isinstance(path, str) and path:
            yield from _faults(key, path, _function_fault(path, name_key, str(_value(config, name_key) or "") or name))
    for key in CONFIGURATIONS:
        path = _value(config, key)
        if isinstance(path, str) and path:
            yield from _faults(key, path, _configuration_fault(path))
    models = [key for key in MODELS if not key.startswith("reward") or _has_reward_model(config)]
    for key in (*models, *_teachers(config), *ADAPTERS):
        path = _value(config, key)
        if isinstance(path, str) and path:
            yield from _faults(key, path, _model_fault(path, _NEEDED.get(key, "config.json")))
    template = _value(config, TEMPLATE)
    if isinstance(template, str) and template and "{" not in template:
        why = "verl takes the text of the template here, not a file; set it in a YAML file to the content of that file"
        yield from _faults(TEMPLATE, _short(template), why)
    yield from _initial_faults(config)
    yield from _feature_faults(config)
    yield from _resumed_faults(config)


def _feature_faults(config: DictConfig) -> Iterator[Fault]:
    """Columns and modules of ``spo.value.features`` that are not there."""
    named = _listed(_value(config, FEATURES))
    for name in named:
        module = name.partition(":")[0]
        if ":" in name and (missing := _module_file(module)[1]) is not None:
            yield Fault(FEATURES, f"{FEATURES}={name}: there is no Python module {missing} in this environment.")
    columns = [name for name in named if ":" not in name]
    if not columns or _value(config, "data.custom_cls.path") is not None:
        return
    for file in _listed(_value(config, "data.train_files")):
        path = os.path.expanduser(file)
        if not path.endswith(".parquet") or not os.path.isfile(path) or os.path.getsize(path) == 0:
            continue  # said elsewhere, or seen from its rows only
        try:
            with parquet_file(Path(path), SpoConfigError) as opened:
                schema = opened.schema_arrow
        except SpoConfigError as error:
            yield Fault("data.train_files", f"data.train_files={file}: {error}.")
            continue
        for name in columns:
            yield from _faults(FEATURES, name, _column_fault(name, file, schema))


def _column_fault(name: str, file: str, schema: Any) -> str | None:
    column, *members = [name] if name in schema.names else name.split(".")
    if column not in schema.names:
        return f"{file} has no column {column!r}, only {sorted(schema.names)}"
    kind = schema.field(column).type
    for member in members:
        if not hasattr(kind, "fields"):  # no struct: a mixture may be stored as text, which its rows tell
            return None
        found = {field.name: field.type for field in kind.fields}
        if member not in found:
            return f"{file} has no {member!r} in {column!r}, only {sorted(found)}"
        kind = found[member]
    return None


def _faults(key: str, path: str, why: str | None) -> Iterator[Fault]:
    if why is not None:
        yield Fault(key, f"{key}={path}: {why}.")


def _value(config: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(config, key, default=None)
    except OmegaConfBaseException:  # a reference to nothing, which is reported as such
        return None


def _listed(value: Any) -> list[str]:
    several = value if isinstance(value, ListConfig) else [value]
    return [one for one in several if isinstance(one, str)]


def _remote(path: str) -> bool:
    return "://" in path and not path.startswith(("file://", "pkg://"))


def _absent(path: str, what: str = "file") -> str:
    """What to say of a path where there is nothing."""
    place = Path(os.path.abspath(path))
    folder = place.parent
    while not os.path.isdir(folder):
        folder = folder.parent
    missing = folder / place.relative_to(folder).parts[0]
    if missing != place and os.path.lexists(missing):
        return f"there is no {what} {place} on this machine, as {missing} is no folder; correct the path"
    try:
        close = difflib.get_close_matches(missing.name, sorted(os.listdir(folder)), n=1, cutoff=0.75)
    except OSError:  # a folder that this user may not read
        close = []
    said = f"there is no {what} {place} on this machine" + ("" if missing == place else f" (not even {missing})")
    return f"{said}; " + (f"there is {folder / close[0]}: correct the path" if close else "correct the path")


def _data_fault(config: DictConfig, path: str) -> str | None:
    if _remote(path):
        return None
    if path.endswith("/"):
        return "verl refuses a path that ends in a slash; name the files"
    found = os.path.expanduser(path)
    custom = _value(config, "data.custom_cls.path")
    if glob.has_magic(found) and not os.path.exists(found):
        return None if glob.glob(found, recursive=True) else "no file on this machine fits the pattern; correct it"
    if not os.path.exists(found):
        return f"{_absent(found)}, or write it with `spo-verl data prepare`"
    if custom is None and os.path.isdir(found):
        return f"this is a folder; name the files in it, e.g. [{_example(found)}]"
    if custom is None and not found.endswith(DATA_ENDINGS):
        return "verl reads .parquet, .json and .jsonl; convert the file, or set data.custom_cls"
    return _unreadable(found)


def _example(folder: str) -> str:
    names = sorted(name for name in os.listdir(folder) if name.endswith(DATA_ENDINGS))
    return os.path.join(folder, names[0] if names else "train.parquet")


def _unreadable(path: str) -> str | None:
    if not os.access(path, os.R_OK):
        return "this user may not read it; change its permissions"
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "the file is empty; was its writer stopped? Write it again"
    return None


def _function_fault(path: str, name_key: str, name: str | None) -> str | None:
    if path.startswith("pkg://"):
        module = path.removeprefix("pkg://").replace("/", ".")
        file, missing = _module_file(module)
        if missing is not None:
            return f"there is no Python module {missing} in this environment; install it, or correct the name"
    else:
        file = path.removeprefix("file://")
        if not os.path.exists(file):
            return _absent(file)
        if os.path.isdir(file):
            return "this is a folder; name the Python file in it"
    if file is None or not file.endswith(".py"):
        return None
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (SyntaxError, ValueError) as error:
        return f"Python cannot read {file} ({error}); correct the file"
    except OSError:
        return _unreadable(file)
    names = _defined(tree)
    if name is None or names is None or name in names:
        return None
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"it has {close[0]}: set {name_key}={close[0]}" if close else f"set {name_key} to the one that is meant"
    return f"it defines no {name}; {hint}"


def _defined(tree: ast.Module) -> set[str] | None:
    """Names that a module may define; None where an ``import *`` or a ``__getattr__`` may bring any."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return None if names & {"*", "__getattr__"} else names


def _module_file(module: str) -> tuple[str | None, str | None]:
    """The file of a module, found without its import, and the part of its name that is missing.

    Looked for as a run does: in the current folder first, as of ``python -m``, and in packages that are installed in
    editable form, which have finders of their own.
    """
    places: Any = [os.getcwd(), *sys.path]
    spec: Any = None
    parts = module.split(".")
    for number in range(1, len(parts) + 1):
        full = ".".join(parts[:number])
        below = None if number == 1 else places
        finders = (finder.find_spec(full, below) for finder in sys.meta_path)
        spec = PathFinder.find_spec(full, places) or next(filter(None, finders), None)
        if spec is None:
            return None, full
        places = spec.submodule_search_locations
        if places is None and number < len(parts):
            return None, f"{full}.{parts[number]}"
    return (None if spec is None else spec.origin), None


def _configuration_fault(path: str) -> str | None:
    """A file of tools, agents or the router: in the current folder, or below verl's package."""
    from spo_verl.launching.hydra_side import verl_trainer_folder

    if _remote(path):
        return None
    package = verl_trainer_folder().parent
    for place in (Path(path), package.parent / path, package / path):
        if os.path.isfile(place):
            return _unreadable(str(place))
    return "this is a folder; name a file in it" if os.path.isdir(path) else _absent(path)


def _has_reward_model(config: DictConfig) -> bool:
    return bool(_value(config, "reward.reward_model.enable") or _value(config, "reward_model.enable"))


def _teachers(config: DictConfig) -> list[str]:
    teachers = _value(config, "distillation.teacher_models") if _value(config, "distillation.enabled") else None
    names = map(str, teachers) if isinstance(teachers, DictConfig) else ()
    return [f"distillation.teacher_models.{name}.model_path" for name in names]


def _model_fault(path: str, needed: str | None) -> str | None:
    if _remote(path):
        return None
    if path.endswith("/"):
        return f"verl refuses a path that ends in a slash; write {path.rstrip('/')}"
    if os.path.isdir(path):
        if needed is not None and not os.path.isfile(os.path.join(path, needed)):
            return f"the folder has no {needed}, which Transformers needs; name the folder that has it"
        return None
    if os.path.isfile(path):
        return "this is a file; name the folder of the model"
    if path.startswith("~") and os.path.isdir(os.path.expanduser(path)):
        return f"Transformers does not know ~; write {os.path.expanduser(path)}"
    if not _HUB_ID.fullmatch(path):
        return f"{_absent(os.path.expanduser(path), 'folder')}, or give an id of the Hugging Face hub (owner/name)"
    if "/" in path and os.path.isdir(path.partition("/")[0]):
        return f"{_absent(path, 'folder')} (verl would ask the Hugging Face hub for {path})"
    return _not_in_cache(path, needed) if _offline() else None


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in ("1", "on", "yes", "true")


def _not_in_cache(hub_id: str, needed: str | None) -> str | None:
    """Without the network only models in the cache can be used."""
    from huggingface_hub import try_to_load_from_cache

    if needed is None or isinstance(try_to_load_from_cache(hub_id, needed), str):
        return None
    return (
        "HF_HUB_OFFLINE is set and the model is not in the cache of this machine; download it with "
        f"`hf download {hub_id}`, name its folder, or unset HF_HUB_OFFLINE"
    )


def _initial_faults(config: DictConfig) -> Iterator[Fault]:
    values = _value(config, "spo.initial.values")
    if isinstance(values, str) and not still_to_estimate(_value(config, "spo.estimate.output"), values):
        yield from _faults("spo.initial.values", values, _values_fault(values))
    tracker = _value(config, "spo.initial.tracker")
    if isinstance(tracker, str):
        yield from _faults("spo.initial.tracker", tracker, _tracker_fault(tracker))


def _values_fault(path: str) -> str | None:
    if not os.path.exists(path):
        return f"{_absent(path)}, or write it with `spo-verl values estimate` or `import`"
    from spo_verl.data.values import OfflineValues
    from spo_verl.errors import SpoError

    try:
        OfflineValues.read(path)
    except SpoError as error:
        return str(error).removeprefix(f"{path}: ").removeprefix(f"{path} ").rstrip(".")
    return None


def _tracker_fault(path: str) -> str | None:
    if not os.path.isdir(path):
        return (
            "this is a file; name the folder spo of a checkpoint" if os.path.exists(path) else _absent(path, "folder")
        )
    if not os.path.isfile(os.path.join(path, "manifest.json")):
        inner = os.path.join(path, "spo")
        hint = inner if os.path.isfile(os.path.join(inner, "manifest.json")) else "<checkpoint>/global_step_N/spo"
        return f"the folder has no manifest.json, so it is no tracker; name {hint}"
    return None


def _resumed_faults(config: DictConfig) -> Iterator[Fault]:
    key = "trainer.resume_from_path"
    path, mode = _value(config, key), _value(config, "trainer.resume_mode")
    if mode == "resume_path":
        yield from _faults(key, str(path), _checkpoint_fault(path))
    elif isinstance(path, str) and path:
        why = f"verl reads it only with trainer.resume_mode=resume_path, and this run has {mode}; set that, or null."
        yield Fault(key, f"{key}={path}: {why}", stops=False)


def _checkpoint_fault(path: Any) -> str | None:
    if not isinstance(path, str) or not re.search(r"global_step_\d+$", path):
        needed = "<checkpoints>/global_step_N, without a slash"
        return f"trainer.resume_mode=resume_path needs the folder of a step; name {needed}"
    if _remote(path) or os.path.isdir(os.path.join(path, "actor")):
        return None
    return (
        "the folder has no actor in it; name one that verl has saved"
        if os.path.isdir(path)
        else _absent(path, "folder")
    )


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."

"""Rows from the hub, from a local folder or from files: streamed in small batches.

`datasets` decodes Parquet one row group at a time, JSON and CSV files are read line by line (`local_files`; only a JSON
file that is one list is held whole), and only a thousand rows and the columns that are asked for become Python objects.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from spo_verl.data.libraries import library_faults, literally, python_values, reason_of
from spo_verl.data.prepare.data_errors import SpoDataError
from spo_verl.data.prepare.local_files import EXACT, exact_batches, require_exact
from spo_verl.data.prepare.published import Release, Source
from spo_verl.errors import SpoError
from spo_verl.files import parquet_file, require_file, require_rows

_ENDINGS = (".parquet", *EXACT)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ROWS_PER_BATCH = 1024
_ANY = Release("own", "", ((None, "train"),), "", "")

_OFFLINE = (
    "Check the name, --config and --split, and the network (HF_HUB_OFFLINE and HF_ENDPOINT are respected). Where there "
    "is no network, load the dataset on another machine (`hf download ID --repo-type dataset --local-dir FOLDER`), "
    "copy the folder here, and give it with --from."
)


Batches = Callable[[], Iterator[pa.Table]]


@dataclass(frozen=True)
class Stream:
    """Where rows come from, opened but not read.

    Attributes:
        label: hub id or paths, as the user would write them.
        parts: what is read, one after the other: how messages call it, and what begins to read it.
        rows: number of rows, where it is known before reading.
        release: the release that a hub id belongs to; None for files, whose columns say which it is.
        split: name of the split that was asked for or found.
    """

    label: str
    parts: tuple[tuple[str, Batches], ...]
    rows: int | None = None
    release: Release | None = None
    split: str = "train"
    details: dict[str, Any] = field(default_factory=dict)

    def batches(self) -> Iterator[pa.Table]:
        """The rows of all parts, as Arrow tables of up to a thousand.

        Raises:
            SpoDataError: something cannot be read or decoded.
        """
        for label, batches in self.parts:
            with _readable(label):
                yield from batches()


def open_files(files: Sequence[Path], split: str | None = None) -> Stream:
    """Open Parquet, JSON or CSV files as one stream of rows.

    Raises:
        SpoDataError: a file is not there, has another ending, or the files are of different kinds.
    """
    for file in files:
        if file.suffix not in _ENDINGS:
            require_file(file, SpoDataError)
            raise SpoDataError(f"{file}: files end with {', '.join(_ENDINGS)}; convert this one.")
        if file.suffix in EXACT:
            require_exact(file)
        else:
            require_rows(file, SpoDataError)
    if len({file.suffix.removesuffix("l") for file in files}) != 1:
        raise SpoDataError("the files are of different kinds: prepare the files of each kind by themselves.")
    label = ", ".join(map(str, files))
    if files[0].suffix in EXACT:
        return Stream(label, ((label, _exactly(files)),), split=split or _split_of_name(files[0]))
    rows = 0
    for file in files:
        with parquet_file(file, SpoDataError) as parquet:
            rows += parquet.metadata.num_rows
    with _readable(label):
        part = _stream("parquet", data_files=[literally(file) for file in files], split="train")
    return Stream(label, ((label, part),), rows, split=split or _split_of_name(files[0]))


def _exactly(files: Sequence[Path]) -> Batches:
    return lambda: exact_batches(files, _ROWS_PER_BATCH)


def open_source(
    source: Source, origin: Sequence[str] = (), *, config: str | None = None, split: str | None = None
) -> Stream:
    """Open a source where the user says that it is.

    Args:
        source: what it is.
        origin: nothing for the default release on the hub; one hub id; one local folder (a clone of the hub's
            repository, any folder that `datasets.load_dataset` reads, or one of `datasets.save_to_disk`); or files.
        config: configuration on the hub or in the folder; default: the release's.
        split: split on the hub or in the folder; default: the release's. For files only a name for their rows; default:
            what their names begin with, or "train".

    Raises:
        SpoDataError: nothing is there, or it cannot be reached; says what to do instead.
    """
    if not origin and not source.releases[0].hub_id:
        raise SpoDataError(f"where is {source.name}? Give a file, a folder or a hub id with --from.")
    if not origin:
        return _open_hub(source, source.releases[0].hub_id, config, split)
    paths = [Path(os.path.expanduser(one)) for one in origin]
    if len(origin) == 1 and os.path.isdir(paths[0]):
        return _open_folder(source, paths[0], config, split)
    if (
        len(origin) == 1
        and not os.path.lexists(paths[0])
        and paths[0].suffix not in _ENDINGS
        and _HUB_ID.fullmatch(origin[0])
    ):
        return _open_hub(source, origin[0], config, split)
    if any(map(os.path.isdir, paths)):
        raise SpoDataError("--from takes one folder, or files, or one hub id: give the folders one by one.")
    return open_files(paths, split)


def _open_hub(source: Source, hub_id: str, config: str | None, split: str | None) -> Stream:
    release = next((one for one in source.releases if one.hub_id == hub_id), None)
    wanted = _parts(release, config, split) if release is not None else ((config, split or "train"),)
    options = {"batch_size": _ROWS_PER_BATCH} if release is not None and release.format == "parquet" else {}
    parts = []
    for name, of_split in wanted:
        label = f"{hub_id} on the hub ({name or 'default'}, {of_split})"
        with _readable(label, _OFFLINE):
            parts.append((label, _stream(hub_id, name, split=of_split, **options)))
    stock = release is not None and config is None and split in (None, release.parts[0][1])
    rows = release.documented_rows if release is not None and stock else None
    return Stream(hub_id, tuple(parts), rows, release, wanted[0][1], {"parts": [list(part) for part in wanted]})


def _open_folder(source: Source, folder: Path, config: str | None, split: str | None) -> Stream:
    import datasets

    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        return _open_saved(source, folder, config, split)
    with _readable(str(folder)):
        configs = datasets.get_dataset_config_names(str(folder))
        release = next((one for one in source.releases if _names(one) and _names(one) <= set(configs)), None)
        if config is None and release is not None:
            wanted = _parts(release, None, split)
        else:
            config = _choose_config(folder, configs, config)
            splits = datasets.get_dataset_split_names(str(folder), config)
            wanted = ((config, _choose_split(source, folder, splits, split)),)
        parts = [(f"{folder} ({one}, {of})", _part_of_folder(folder, one, of)) for one, of in wanted]
    return Stream(str(folder), tuple(parts), split=wanted[0][1], details={"parts": [list(part) for part in wanted]})


def _part_of_folder(folder: Path, config: str | None, split: str) -> Batches:
    """One split: JSON and CSV files exactly, everything else by `datasets`."""
    import datasets

    files = [Path(one) for one in datasets.load_dataset_builder(str(folder), config).config.data_files[split]]
    if all(file.suffix in EXACT for file in files):
        for file in files:
            require_exact(file)
        return _exactly(files)
    # Only of Parquet `datasets` takes the size of a batch.
    parquet = all(file.suffix == ".parquet" for file in files)
    return _stream(str(folder), config, split=split, **({"batch_size": _ROWS_PER_BATCH} if parquet else {}))


def _open_saved(source: Source, folder: Path, config: str | None, split: str | None) -> Stream:
    """A folder of `datasets.save_to_disk`: one dataset, or one per split."""
    import datasets

    if config is not None:
        raise SpoDataError(
            f"{folder} was written by datasets.save_to_disk and has no configurations: leave --config away."
        )
    with _readable(str(folder)):
        saved = datasets.load_from_disk(str(folder))
        chosen = split or "train"
        if isinstance(saved, datasets.DatasetDict):
            chosen = _choose_split(source, folder, list(saved), split)
            saved = saved[chosen]
        part = _batches_of(saved.to_iterable_dataset())
    return Stream(str(folder), ((str(folder), part),), saved.num_rows, split=chosen)


def _split_of_name(file: Path) -> str:
    """The split that a file's name begins with, as on the hub; "train" where it begins with none."""
    return next((split for split in ("train", "test", "validation") if file.stem.startswith(split)), "train")


def _names(release: Release) -> set[str]:
    return {config for config, _ in release.parts if config is not None}


def _parts(release: Release, config: str | None, split: str | None) -> tuple[tuple[str | None, str], ...]:
    if config is not None:
        return ((config, split or release.parts[0][1]),)
    return tuple((name, split or of_split) for name, of_split in release.parts)


def _choose_config(folder: Path, configs: Sequence[str], asked: str | None) -> str | None:
    if asked in configs or (asked is None and (len(configs) == 1 or "default" in configs)):
        return asked
    raise SpoDataError(
        f"{folder} has the configurations {', '.join(configs) or '(none)'}: name one of them with --config"
        + (f" instead of {asked}." if asked else ".")
    )


def _choose_split(source: Source, folder: Path, splits: Sequence[str], asked: str | None) -> str:
    usual = [one for release in source.releases for _, one in release.parts]
    for split in [asked] if asked is not None else usual:
        if split in splits:
            return split
    if asked is None and len(splits) == 1:
        return splits[0]
    raise SpoDataError(
        f"{folder} has the splits {', '.join(splits) or '(none)'}: name one of them with --split"
        + (f" instead of {asked}." if asked else ".")
    )


def _stream(path: str, name: str | None = None, **options: Any) -> Batches:
    import datasets

    if path == "parquet":
        options["batch_size"] = _ROWS_PER_BATCH
    return _batches_of(datasets.load_dataset(path, name, streaming=True, **options))


def _batches_of(dataset: Any) -> Batches:
    """The batches of an iterable dataset of `datasets`."""
    return lambda: dataset.with_format("arrow").iter(batch_size=_ROWS_PER_BATCH)


@contextmanager
def _readable(label: str, advice: str = "Restore it, or convert it again.") -> Iterator[None]:
    """Turn what `datasets` raises into one message that says what could not be read."""
    try:
        yield
    except SpoError:
        raise
    except library_faults() as error:
        raise SpoDataError(f"{label} cannot be read ({reason_of(error)}). {advice}") from error


def find_release(source: Source, schema: pa.Schema, expected: Release | None = None) -> Release:
    """The release whose columns a table has: the expected one, if it has those.

    Raises:
        SpoDataError: none has; lists the columns that are there and those of each release.
    """
    if not source.releases[0].hub_id:
        _require_own(schema, source.releases[0])
        return source.releases[0]
    if expected is not None and _has(schema, expected):
        return expected
    found = [release for release in source.releases if _has(schema, release)]
    for release in found:  # releases may differ in the name of the identifier alone
        if release.source_id is not None and _kind_of(schema, release.source_id) is not None:
            return release
    if found:
        return found[0]
    known = "; ".join(f"{one.name}: {one.problem} and {one.answer}" for one in source.releases)
    raise SpoDataError(
        f"the columns ({', '.join(schema.names)}) are not those of {source.title}. Known releases and their columns "
        f"for problem and answer: {known}. Name the columns with --question and --answer, or prepare it under the name "
        "of its own source."
    )


def columns_of(origin: Sequence[str], *, config: str | None = None, split: str | None = None) -> list[str]:
    """The columns of any data, those with members by the members; arguments as of `open_source`.

    Raises:
        SpoDataError: it cannot be read.
    """
    stream = open_source(Source("own", "own", "train", "any", (_ANY,)), origin, config=config, split=split)
    first = next(stream.batches(), None)
    return [] if first is None else list(_members(first.schema))


def _require_own(schema: pa.Schema, release: Release) -> None:
    """Refuse columns that were named and are not there, or that cannot hold what they were named for."""
    there = ", ".join(_members(schema))
    named = {"--question": release.problem, "--answer": release.answer, "--id": release.source_id}
    for option, path in named.items():
        if path is None:
            continue
        if not path:
            raise SpoDataError(f"which column is it? Name it with {option}; the columns are {there}.")
        kind = _kind_of(schema, path)
        if kind is None:
            raise SpoDataError(f"there is no column {path!r} ({option}); the columns are {there}.")
        if pa.types.is_struct(kind):
            raise SpoDataError(
                f"the column {path!r} ({option}) has members: name one of them; the columns are {there}."
            )


def _members(schema: pa.Schema) -> Iterator[str]:
    """All columns; those with members by the members."""
    for field_ in schema:
        if pa.types.is_struct(field_.type):
            yield from (f"{field_.name}.{name}" for name in _members(pa.schema(list(field_.type))))
        else:
            yield field_.name


def _has(schema: pa.Schema, release: Release) -> bool:
    kind = _kind_of(schema, release.problem)
    if kind is None or _kind_of(schema, release.answer) is None:
        return False
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(is_list) == release.messages


def _kind_of(schema: pa.Schema, path: str) -> pa.DataType | None:
    """The type of a column or a member of it; None where it is not there. A JSON column may hold any member."""
    top, inner = _split_path(schema.names, path)
    if top not in schema.names:
        return None
    kind = schema.field(top).type
    for name in inner:
        if _is_json(kind):
            return kind
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        kind = kind.field(name).type
    return kind


def _split_path(names: Sequence[str], path: str) -> tuple[str, list[str]]:
    """The column, and the members that lead on; a column whose own name has dots comes first."""
    if path in names:
        return path, []
    top, *inner = path.split(".")
    return top, inner


def values_of(table: pa.Table, path: str) -> list[Any]:
    """The values of a column, or of a member of a struct, as Python objects; None for each where it is not there."""
    top, inner = _split_path(table.column_names, path)
    if top not in table.column_names:
        return [None] * table.num_rows
    column = table.column(top)
    values = python_values(column, top, SpoDataError)
    if _holds_json(column.type):
        values = [_parsed(value, column.type) for value in values]
    for name in inner:
        values = [value.get(name) if isinstance(value, dict) else None for value in values]
    return values


def _parsed(value: Any, kind: pa.DataType) -> Any:
    """Replace the JSON texts by what they say: `datasets` keeps fields of mixed types (numbers and texts) like that."""
    if value is None:
        return None
    if _is_json(kind):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):  # texts of digits such as 016 are there without quotes
            return value
    if pa.types.is_struct(kind):
        return {field.name: _parsed(value[field.name], field.type) for field in kind}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [_parsed(element, kind.value_type) for element in value]
    return value


def _holds_json(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_holds_json(field.type) for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_json(kind.value_type)
    return _is_json(kind)


def _is_json(kind: pa.DataType) -> bool:
    return getattr(kind, "extension_name", None) == "arrow.json"

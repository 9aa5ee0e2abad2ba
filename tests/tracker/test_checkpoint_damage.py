"""Each kind of damage: its own error, the file's name, a way out, and a folder that stays byte for byte."""

import hashlib
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pytest

from spo_verl.errors import (
    SpoCheckpointDamagedError,
    SpoCheckpointError,
    SpoCheckpointVersionError,
    SpoDatasetMismatchError,
)
from spo_verl.tracker import PromptSources, Tracker, TrackerSettings
from spo_verl.tracker.checkpoint.folder import MANIFEST, checksum
from spo_verl.tracker.checkpoint.schema import OUTCOMES, PROMPTS, RESPONSES, ROLLOUTS

from .helpers import folder_bytes, keys, rewrite_manifest, train_step

SETTINGS = TrackerSettings()
CALIBRATED = TrackerSettings(readout="calibrated")
SOURCES = PromptSources.of(["a", "b"] * 10)
FILES = (PROMPTS, RESPONSES, ROLLOUTS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "spo"
    tracker = Tracker.create(keys(20), SETTINGS)
    for version in range(6):
        train_step(tracker, version, 6)
    tracker.snapshot().write(folder, step=6)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    copy = tmp_path / "spo"
    shutil.copytree(whole, copy)
    return copy


def refused(folder, error, *words):
    """Loading raises exactly this class; the message has the words and a remedy; nothing changed on disk."""
    before = folder_bytes(folder)
    with pytest.raises(error) as caught:
        Tracker.load(folder, keys(20), SETTINGS)
    assert type(caught.value) is error
    message = str(caught.value)
    for word in (str(folder), "Nothing on disk was changed", "resume", *words):
        assert word in message
    assert folder_bytes(folder) == before


def test_the_copy_loads(folder):
    before = folder_bytes(folder)
    Tracker.load(folder, keys(20), SETTINGS)
    assert folder_bytes(folder) == before


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 0.5, -1])
def test_truncated_file(folder, name, keep):
    content = (folder / name).read_bytes()
    kept = content[: int(len(content) * keep)] if keep >= 0 else content[:keep]
    (folder / name).write_bytes(kept)
    refused(folder, SpoCheckpointDamagedError, name, f"has {len(kept)} bytes instead of {len(content)}")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0, 0.3, 0.6, 0.999])
def test_flipped_bit(folder, name, where):
    content = bytearray((folder / name).read_bytes())
    content[int(len(content) * where)] ^= 0x10
    (folder / name).write_bytes(content)
    refused(folder, SpoCheckpointDamagedError, name, "checksum", "its content changed")


@pytest.mark.parametrize("name", FILES)
def test_missing_file(folder, name):
    (folder / name).unlink()
    refused(folder, SpoCheckpointDamagedError, f"{name} is missing")


def test_missing_manifest(folder):
    (folder / MANIFEST).unlink()
    refused(folder, SpoCheckpointDamagedError, f"{MANIFEST} is missing")


def test_missing_folder(tmp_path):
    with pytest.raises(SpoCheckpointError, match="there is no tracker checkpoint at .*nowhere") as caught:
        Tracker.load(tmp_path / "nowhere", keys(2), SETTINGS)
    assert type(caught.value) is SpoCheckpointError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", '{"format": ', "[1, 2]", "null", "{}", '{"format": "other"}', "\ufeff{}"])
def test_broken_manifest(folder, text):
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    refused(folder, SpoCheckpointDamagedError, MANIFEST)


def test_manifest_that_is_no_text(folder):
    (folder / MANIFEST).write_bytes(b"\xff\xfe\x00{")
    refused(folder, SpoCheckpointDamagedError, f"{MANIFEST} is not readable JSON")


def test_every_altered_byte_of_the_manifest_is_noticed(folder):
    content = (folder / MANIFEST).read_bytes()
    before = folder_bytes(folder)
    for position in range(0, len(content), 7):
        if content[position : position + 1].isspace():
            continue
        altered = bytearray(content)
        altered[position] ^= 0x01
        (folder / MANIFEST).write_bytes(altered)
        with pytest.raises((SpoCheckpointDamagedError, SpoCheckpointVersionError), match=MANIFEST):
            Tracker.load(folder, keys(20), SETTINGS)
    (folder / MANIFEST).write_bytes(content)
    assert folder_bytes(folder) == before
    Tracker.load(folder, keys(20), SETTINGS)


def test_newer_format(folder):
    rewrite_manifest(folder, format_version=2, spo_verl_version="9.1.0")
    refused(folder, SpoCheckpointVersionError, "format 2", "reads up to 1", "install spo_verl 9.1.0 or newer")


@pytest.mark.parametrize("version", [0, -1, "1", None, 1.0])
def test_impossible_format(folder, version):
    rewrite_manifest(folder, format_version=version)
    refused(folder, SpoCheckpointDamagedError, MANIFEST, "not a positive integer")


def test_unknown_field(folder):
    rewrite_manifest(folder, colour="blue")
    refused(folder, SpoCheckpointVersionError, MANIFEST, "does not know (colour)", "install that")


@pytest.mark.parametrize("section", ["settings", "counters", "random"])
def test_unknown_or_missing_name_within_a_field(folder, section):
    content = json.loads((folder / MANIFEST).read_text())[section]
    rewrite_manifest(folder, **{section: content | {"half_live": 1}})
    refused(folder, SpoCheckpointVersionError, f"{section} in {MANIFEST}", "differ in half_live")
    first = next(iter(content))
    rewrite_manifest(folder, **{section: {name: value for name, value in content.items() if name != first}})
    refused(folder, SpoCheckpointVersionError, f"{section} in {MANIFEST}", f"differ in {first}")


def test_missing_field(folder):
    content = json.loads((folder / MANIFEST).read_text())
    del content["digest"], content["checksum"]
    (folder / MANIFEST).write_text(json.dumps(content))
    refused(folder, SpoCheckpointDamagedError, "does not match its own checksum")
    shrunk = {name: value for name, value in content.items() if name != "step"}
    (folder / MANIFEST).write_text(json.dumps(shrunk | {"checksum": checksum(shrunk)}))
    refused(folder, SpoCheckpointDamagedError, MANIFEST, "lacks the fields digest, step")


def test_files_of_two_checkpoints_do_not_mix(folder, tmp_path):
    """Whole files with fitting checksums, but of another state: the digest notices."""
    other = Tracker.create(keys(20), SETTINGS)
    for version in range(3):
        train_step(other, version, 6)
    other.snapshot().write(tmp_path / "other")
    manifest = json.loads((folder / MANIFEST).read_text())
    foreign = json.loads((tmp_path / "other" / MANIFEST).read_text())
    shutil.copy(tmp_path / "other" / PROMPTS, folder / PROMPTS)
    rewrite_manifest(folder, files=manifest["files"] | {PROMPTS: foreign["files"][PROMPTS]})
    refused(folder, SpoCheckpointDamagedError, MANIFEST, "digest that the data files do not give")


def test_file_that_is_not_arrow(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    for content, words in ((b"no arrow", "not a readable Arrow file"), (None, "has the columns")):
        content = content or (folder / ROLLOUTS).read_bytes()
        (folder / PROMPTS).write_bytes(content)
        entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        rewrite_manifest(folder, files=manifest["files"] | {PROMPTS: entry})
        refused(folder, SpoCheckpointDamagedError, PROMPTS, words)


def test_other_file_list(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    rewrite_manifest(folder, files={"../prompts.arrow": manifest["files"][PROMPTS]})
    refused(folder, SpoCheckpointDamagedError, MANIFEST, "lists ['../prompts.arrow'] instead of")


def test_other_dataset(folder):
    before = folder_bytes(folder)
    with pytest.raises(SpoDatasetMismatchError) as caught:
        Tracker.load(folder, keys([77, 78]), SETTINGS)
    assert "Nothing on disk was changed" in str(caught.value)
    assert folder_bytes(folder) == before


# ---------------------------------------------------------------------- anything in a manifest, whole checksums


def signed(folder, content):
    """Write a manifest with a checksum that fits, whatever JSON of Python's it holds."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    (folder / MANIFEST).write_text(json.dumps(content | {"checksum": hashlib.sha256(text.encode()).hexdigest()}))


def nested(depth):
    content: object = 1
    for _ in range(depth):
        content = [content]
    return content


VALUES = [
    *(None, True, -1, 0, 1, 7, 2**31, 2**63, 10**40, 10**4000, 0.5, 1.0, -0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "7", "\ud800", "\x00", [], [1], ["acting"], {}, {"x": 1}, {"bytes": 1}, nested(100), nested(700)),
]


def places(content, path=()):
    """Paths of all values of a JSON object."""
    for name, value in content.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from places(value, (*path, name))


def edited(content, path, change):
    """A copy in which ``change(parent, name)`` was done at one place."""
    copy = json.loads(json.dumps(content))
    parent = copy
    for name in path[:-1]:
        parent = parent[name]
    change(parent, path[-1])
    return copy


def refused_or_loaded(folder, what):
    """True if it loads; otherwise the documented error, which names the manifest or another file, and a way out."""
    refusal, tracker = "", None
    try:
        tracker, _ = Tracker.load(folder, keys(20), SETTINGS)
    except SpoCheckpointError as error:
        refusal = str(error)
    if tracker is None:
        assert str(folder) in refusal, what
        assert "Nothing on disk was changed" in refusal, what
        refusal.encode()
        return False
    tracker.draw(3)
    tracker.metrics()
    return True


def test_every_value_of_the_manifest_replaced_by_anything(folder):
    content = json.loads((folder / MANIFEST).read_text())
    del content["checksum"]
    loaded = set()
    for number, path in enumerate(places(content)):
        for value in VALUES[number % 3 :: 3]:  # every third at each place, and every one at every third
            altered = edited(content, path, lambda parent, name, value=value: parent.update({name: value}))
            signed(folder, altered)
            if refused_or_loaded(folder, (path, value)) and altered != content:
                loaded.add(path[0])
        signed(folder, edited(content, path, lambda parent, name: parent.pop(name)))
        refused_or_loaded(folder, path)
        signed(folder, edited(content, path, lambda parent, name: parent.update({"\ud800 x": 1})))
        refused_or_loaded(folder, path)
    # What nothing else depends on may say anything of its type.
    assert loaded <= {"step", "settings", "spo_verl_version", "extra", "counts", "dataset", "clock"}


@pytest.mark.parametrize(
    "text",
    [
        *("NaN", "Infinity", '{"format": NaN}', '{"a": 1e999}', "1" * 5000, '{"a": ' + "1" * 5000 + "}", "\ud800"),
        *("[" * 1000, "[" * 100_000, '{"a":' * 1000 + "1" + "}" * 1000, '{"a":' * 990 + "1" + "}" * 990),
        *("{}" * 2, "{'a': 1}", '{"a": 1,}', "\x00" * 4096, '"text"', "1e5", "true"),
    ],
)
def test_text_that_is_no_manifest(folder, text):
    (folder / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
    refused(folder, SpoCheckpointDamagedError, MANIFEST)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_a_manifest_in_another_encoding(folder, encoding):
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_bytes(text.replace("{", "{ ", 1).encode(encoding))
    refused(folder, SpoCheckpointDamagedError, f"{MANIFEST} is not readable JSON")


def test_a_name_that_stands_twice(folder):
    text = (folder / MANIFEST).read_text()
    for twice in ('"step": 6,', '"open": 0,'):
        assert text.count(twice) == 1
        (folder / MANIFEST).write_text(text.replace(twice, twice + twice))
        refused(folder, SpoCheckpointDamagedError, MANIFEST, f"{twice.split(chr(34))[1]}' is there twice")


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
@pytest.mark.parametrize("kind", ["folder", "loop", "nothing", "pipe", "device"])
def test_something_else_in_place_of_a_file(folder, name, kind):
    path = folder / name
    path.unlink()
    make = {
        "folder": path.mkdir,
        "loop": lambda: path.symlink_to(name),
        "nothing": lambda: path.symlink_to("nothing"),
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
    }
    make[kind]()
    words = {"folder": "is a folder", "loop": "leads to itself", "nothing": "is missing"}.get(kind, "is no file")
    with pytest.raises(SpoCheckpointDamagedError, match=f"{folder}: {name} .*{words}.*Nothing on disk was changed"):
        Tracker.load(folder, keys(20), SETTINGS)


@pytest.mark.parametrize("kind", ["file", "loop", "nothing"])
def test_something_else_in_place_of_the_folder(tmp_path, kind):
    path = tmp_path / "spo"
    path.write_text("x") if kind == "file" else path.symlink_to("spo" if kind == "loop" else "nothing")
    with pytest.raises(SpoCheckpointError, match="there is no tracker checkpoint at"):
        Tracker.load(path, keys(20), SETTINGS)


# ---------------------------------------------------------------------- whole files with impossible content


def rewritten(folder, name, change):
    """Let ``change`` alter the columns of a data file (lists by name); checksums and manifest fit again."""
    with pa.OSFile(str(folder / name)) as source:
        table = pa.ipc.open_file(source).read_all()
    columns = {column: table.column(column).to_pylist() for column in table.schema.names}
    change(columns)
    arrays = [pa.array(columns[entry.name], type=entry.type) for entry in table.schema]
    with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(pa.table(arrays, schema=table.schema))
    content = (folder / name).read_bytes()
    files = json.loads((folder / MANIFEST).read_text())["files"]
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite_manifest(folder, files=files | {name: entry})


@pytest.fixture
def calibrated(tmp_path):
    """A folder of a tracker with the calibrated read-out: outcomes, and two open rollouts."""
    tracker = Tracker.create(keys(20), CALIBRATED, sources=SOURCES)
    for version in range(4):
        train_step(tracker, version, 6)
    tracker.dispatch(["a", "b"], [0, 1], 4)
    tracker.snapshot().write(tmp_path / "spo", step=4)
    return tmp_path / "spo"


def test_the_state_of_the_readout_is_verified_as_everything_else_is(calibrated):
    path, content = calibrated / OUTCOMES, (calibrated / OUTCOMES).read_bytes()
    path.unlink()
    refused(calibrated, SpoCheckpointDamagedError, f"{OUTCOMES} is missing")
    path.write_bytes(content[:-1])
    refused(calibrated, SpoCheckpointDamagedError, OUTCOMES, f"has {len(content) - 1} bytes instead of {len(content)}")
    path.write_bytes(bytes([*content[:400], content[400] ^ 1, *content[401:]]))
    refused(calibrated, SpoCheckpointDamagedError, OUTCOMES, "checksum", "its content changed")
    path.write_bytes(content)
    manifest = json.loads((calibrated / MANIFEST).read_text())
    without = {name: entry for name, entry in manifest["files"].items() if name != OUTCOMES}
    rewrite_manifest(calibrated, files=without)
    refused(calibrated, SpoCheckpointDamagedError, MANIFEST, "lists")
    rewrite_manifest(calibrated, files=manifest["files"], readout={})
    refused(calibrated, SpoCheckpointDamagedError, MANIFEST, "lists")
    rewrite_manifest(calibrated, readout=manifest["readout"])
    Tracker.load(calibrated, keys(20), CALIBRATED, sources=SOURCES)


def test_every_value_of_the_readout_replaced_by_anything(calibrated):
    content = json.loads((calibrated / MANIFEST).read_text())
    del content["checksum"]
    others = [["a", "b"], ["b", "a"], ["a", "a"], [1.0], [0.0] * 6, [0.0] * 5 + [1], ["\ud800", "a"], -0.0]
    for path in places({"readout": content["readout"]}):
        for value in (*VALUES, *others):
            altered = edited(content, path, lambda parent, name, value=value: parent.update({name: value}))
            signed(calibrated, altered)
            assert not refused_or_loaded(calibrated, (path, value)) or altered == content
    for name in content["readout"]:
        signed(calibrated, edited(content, ("readout", name), lambda parent, name: parent.pop(name)))
        refused(calibrated, SpoCheckpointVersionError, f"readout in {MANIFEST}", f"differ in {name}")
    signed(calibrated, edited(content, ("readout", "shape"), lambda parent, name: parent.update({name: 1})))
    refused(calibrated, SpoCheckpointVersionError, f"readout in {MANIFEST}", "differ in shape")


def put(column, row, value):
    return lambda columns: columns[column].__setitem__(row, value)


def drop_last(columns):
    for values in columns.values():
        values.pop()


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        *((PROMPTS, put("alpha", 3, value), "impossible values in row 3") for value in (np.nan, np.inf, -1.0)),
        (PROMPTS, put("beta", 0, 1e400), "impossible values in row 0"),
        (PROMPTS, lambda c: (put("alpha", 2, 0.0)(c), put("beta", 2, 0.0)(c)), "impossible values in row 2"),
        (PROMPTS, lambda c: (put("alpha", 2, 1e308)(c), put("beta", 2, 1e308)(c)), "impossible values in row 2"),
        (PROMPTS, put("visits", 1, -1), "impossible values in row 1"),
        (PROMPTS, put("draws", 1, -1), "impossible values in row 1"),
        (PROMPTS, put("version", 4, -2), "impossible values in row 4"),
        (PROMPTS, put("alpha", 4, None), "not a readable Arrow file"),
        (PROMPTS, drop_last, "has 19 rows instead of 20"),
        (RESPONSES, put("slot", -1, 20), "slots that do not exist"),
        (RESPONSES, put("slot", 0, -1), "slots that do not exist"),
        (RESPONSES, lambda c: put("slot", 1, c["slot"][0])(c), "slots that do not exist"),
        (RESPONSES, put("token", 0, [1]), "columns that do not fit together"),
        (RESPONSES, put("mask", 0, []), "columns that do not fit together"),
        (RESPONSES, put("log_prob_acting", 0, []), "columns that do not fit together"),
        (RESPONSES, put("slot", 0, None), "not a readable Arrow file"),
        (RESPONSES, put("token", 0, None), "not a readable Arrow file"),
        *((ROLLOUTS, put(column, 0, None), "impossible rollout") for column in ("uid", "open", "slot", "value")),
        *((ROLLOUTS, put("slot", 0, value), "impossible rollout") for value in (-1, 20)),
        *((ROLLOUTS, put("value", 0, value), "impossible rollout") for value in (np.nan, 1.5, -0.5)),
        *((ROLLOUTS, put("n_eff", 0, value), "impossible rollout") for value in (np.nan, np.inf, -0.5)),
        (ROLLOUTS, put("version", 0, -1), "impossible rollout"),
        (ROLLOUTS, put("sessions", 0, [0, None]), "impossible rollout"),
        (ROLLOUTS, lambda c: put("uid", 1, c["uid"][0])(c), "impossible rollout"),
    ],
)
def test_impossible_content_is_damage_of_that_file(tmp_path, name, change, words):
    tracker = Tracker.create(keys(20), SETTINGS)
    train_step(tracker, 0, 8)
    tracker.dispatch(["a", "b"], [0, 1], 1)
    tracker.snapshot().write(tmp_path / "spo")
    rewritten(tmp_path / "spo", name, change)
    refused(tmp_path / "spo", SpoCheckpointDamagedError, name, words)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        *((OUTCOMES, put("value", 3, value), "impossible values in row 3") for value in (np.nan, -0.1, 1.5)),
        *((OUTCOMES, put("n_eff", 0, value), "impossible values in row 0") for value in (np.nan, np.inf, -1.0)),
        *((OUTCOMES, put("reward", 1, value), "impossible values in row 1") for value in (np.nan, -0.1, 1.5)),
        (OUTCOMES, put("age", 2, -1), "impossible values in row 2"),
        *((OUTCOMES, put("source", 2, value), "impossible values in row 2") for value in (-2, 2)),
        (OUTCOMES, put("reward", 4, None), "not a readable Arrow file"),
        *((ROLLOUTS, put(column, 0, None), "impossible rollout") for column in ("raw", "age", "value")),
        *((ROLLOUTS, put("raw", 0, value), "impossible rollout") for value in (np.nan, 1.5, -0.5)),
        (ROLLOUTS, put("age", 0, -1), "impossible rollout"),
    ],
)
def test_impossible_content_of_the_readout_is_damage_of_that_file(calibrated, name, change, words):
    rewritten(calibrated, name, change)
    refused(calibrated, SpoCheckpointDamagedError, name, words)

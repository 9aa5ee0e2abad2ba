"""Each kind of damage: its own error, the file's name, a way out, and a folder that stays byte for byte."""

import hashlib
import json
import shutil

import pytest

from spo_verl.errors import (
    SpoCheckpointDamagedError,
    SpoCheckpointError,
    SpoCheckpointVersionError,
    SpoDatasetMismatchError,
)
from spo_verl.tracker import Tracker, TrackerSettings
from spo_verl.tracker.checkpoint import PROMPTS, RESPONSES, ROLLOUTS
from spo_verl.tracker.folder import MANIFEST, checksum

from .helpers import folder_bytes, keys, rewrite_manifest, train_step

SETTINGS = TrackerSettings()
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

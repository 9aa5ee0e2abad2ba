"""What lies where a checkpoint is to be written, or changes while one is read: saves go on, readers see a whole one."""

import os
import shutil
import stat
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from spo_verl.errors import SpoCheckpointDamagedError, SpoCheckpointError
from spo_verl.tracker import Tracker
from spo_verl.tracker.checkpoint import folder as folders
from spo_verl.tracker.checkpoint import reading
from spo_verl.tracker.checkpoint.folder import MANIFEST
from spo_verl.tracker.checkpoint.schema import PROMPTS

from .helpers import CONSTANT, folder_bytes, keys, train_step

NOBODY = 65534


@pytest.fixture
def tracker():
    return Tracker.create(keys(5), CONSTANT)


@pytest.fixture
def place():
    """A folder of an ordinary user: the tests may run as root, whom no permission holds up."""
    path = Path(tempfile.mkdtemp(prefix="spo-checkpoint-"))
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    yield path
    for parent, names, _ in os.walk(path):
        for name in names:
            if not os.path.islink(os.path.join(parent, name)):
                os.chmod(os.path.join(parent, name), stat.S_IRWXU)
    shutil.rmtree(path)


@contextmanager
def ordinary_user():
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def saves_go_on(tracker, target, left=()):
    """Two saves in a row succeed and the last one is loaded; beside it only these names are left."""
    for step in (1, 2):
        written = tracker.snapshot().write(target, step=step)
    loaded, report = Tracker.load(target, keys(5), CONSTANT)
    assert (report.step, loaded.digest()) == (2, written.digest)
    assert not target.is_symlink()
    assert sorted(path.name for path in target.parent.iterdir()) == sorted([*left, target.name])


def a_file(path):
    path.write_text("somebody's")


def a_pipe(path):
    os.mkfifo(path)


def a_link_to_nothing(path):
    path.symlink_to("nothing")


def a_link_to_itself(path):
    path.symlink_to(path.name)


def a_full_folder(path):
    (path / "deep" / "deeper").mkdir(parents=True)
    (path / "deep" / "deeper" / "file").write_text("x")


KINDS = [a_file, a_pipe, a_link_to_nothing, a_link_to_itself, a_full_folder]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["spo", ".spo.writing-0", ".spo.replaced-0"])
def test_whatever_lies_at_the_place_or_was_left_behind(tmp_path, tracker, kind, name):
    kind(tmp_path / name)
    saves_go_on(tracker, tmp_path / "spo")


@pytest.mark.parametrize("name", ["spo", ".spo.writing-0", ".spo.replaced-0"])
def test_a_link_goes_and_what_it_leads_to_stays(tmp_path, tracker, name):
    real = tmp_path / "real"
    a_full_folder(real)
    before = folder_bytes(real)
    (tmp_path / name).symlink_to(real)
    saves_go_on(tracker, tmp_path / "spo", ["real"])
    assert folder_bytes(real) == before


@pytest.mark.parametrize("name", ["spo", ".spo.writing-0", ".spo.replaced-0"])
def test_write_protected_leftovers(place, tracker, name):
    with ordinary_user():
        a_full_folder(place / name)
        for path in (place / name / "deep" / "deeper", place / name / "deep", place / name):
            path.chmod(0o500)
        saves_go_on(tracker, place / "spo")


def test_leftovers_that_cannot_be_deleted_are_named_and_in_nobodys_way(tmp_path, tracker, monkeypatch, caplog):
    a_full_folder(tmp_path / ".spo.writing-0")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with caplog.at_level("WARNING", logger="spo_verl"):
        tracker.snapshot().write(tmp_path / "spo")
    assert ".spo.writing-0 cannot be deleted ([Errno 13] Permission denied)" in caplog.text
    monkeypatch.undo()
    saves_go_on(tracker, tmp_path / "spo")


@pytest.mark.parametrize("what", [MANIFEST, PROMPTS, "", ".."])
def test_what_may_not_be_read_is_said(place, tracker, what):
    folder = place / "step" / "spo"
    with ordinary_user():
        tracker.snapshot().write(folder)
        before, closed = folder_bytes(folder), (folder / what).resolve()
        closed.chmod(0)
        with pytest.raises(SpoCheckpointError, match=r"cannot be read \(Permission denied\); check its perm") as caught:
            Tracker.load(folder, keys(5), CONSTANT)
        assert type(caught.value) is SpoCheckpointError
        assert f"{closed}" in str(caught.value)
        closed.chmod(0o700)
        assert folder_bytes(folder) == before
        Tracker.load(folder, keys(5), CONSTANT)


def test_a_place_that_may_not_be_written_is_said(place, tracker):
    with ordinary_user():
        tracker.snapshot().write(place / "step" / "spo")
        (place / "step").chmod(0o500)
        with pytest.raises(SpoCheckpointError, match="Permission denied.*correct the folder's permissions"):
            tracker.snapshot().write(place / "step" / "spo")
        Tracker.load(place / "step" / "spo", keys(5), CONSTANT)
        (place / "step").chmod(0o700)
        saves_go_on(tracker, place / "step" / "spo")


def test_a_folder_above_that_is_a_file(tmp_path, tracker):
    a_file(tmp_path / "step")
    with pytest.raises(SpoCheckpointError, match="writing the tracker checkpoint"):
        tracker.snapshot().write(tmp_path / "step" / "spo")
    with pytest.raises(SpoCheckpointError, match="there is no tracker checkpoint at"):
        Tracker.load(tmp_path / "step" / "spo", keys(5), CONSTANT)


# ---------------------------------------------------------------------- while it is replaced


@pytest.mark.parametrize("at", ["read_manifest", "verify_files", "_read_prompts", "_read_responses", "_read_rollouts"])
def test_a_folder_that_is_replaced_at_any_moment_of_reading(tmp_path, tracker, monkeypatch, at):
    """The writer comes between two steps of the reader, which then has a manifest of one and files of another."""
    old, new = Tracker.create(keys(5), CONSTANT), tracker
    train_step(new, 0, 3)
    old.snapshot().write(tmp_path / "spo", step=1)
    owner = folders if hasattr(folders, at) else reading
    step, writes = getattr(owner, at), []

    def interrupted(*args):
        if len(writes) < 3:
            writes.append((new if len(writes) % 2 == 0 else old).snapshot().write(tmp_path / "spo", step=2))
        return step(*args)

    monkeypatch.setattr(owner, at, interrupted)
    loaded, _ = Tracker.load(tmp_path / "spo", keys(5), CONSTANT)
    assert loaded.digest() in {written.digest for written in writes}


def test_readers_beside_a_writer_that_never_rests(tmp_path):
    trackers = [Tracker.create(keys(5), CONSTANT) for _ in range(2)]
    train_step(trackers[1], 0, 3)
    trackers[0].snapshot().write(tmp_path / "spo")
    ended = threading.Event()

    def write():
        for turn in range(12):
            trackers[turn % 2].snapshot().write(tmp_path / "spo", step=turn)
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    digests = {tracker.digest() for tracker in trackers}
    while not ended.is_set():
        loaded, _ = Tracker.load(tmp_path / "spo", keys(5), CONSTANT)
        assert loaded.digest() in digests
    writer.join()


def test_the_instant_between_the_two_renames_is_waited_for(tmp_path, tracker):
    tracker.snapshot().write(tmp_path / "spo")
    (tmp_path / "spo").rename(tmp_path / "new")
    (tmp_path / ".spo.replaced-0").mkdir()
    timer = threading.Timer(0.1, lambda: (tmp_path / "new").rename(tmp_path / "spo"))
    timer.start()
    Tracker.load(tmp_path / "spo", keys(5), CONSTANT)
    timer.join()


def test_a_writer_that_was_killed_there_is_told_of(tmp_path, tracker, monkeypatch):
    monkeypatch.setattr(reading, "READ_ATTEMPTS", 5)
    tracker.snapshot().write(tmp_path / "spo")
    (tmp_path / "spo").rename(tmp_path / ".spo.replaced-0")
    with pytest.raises(
        SpoCheckpointError, match=r"no tracker checkpoint .*the former one is .*\.spo\.replaced-0, rename"
    ):
        Tracker.load(tmp_path / "spo", keys(5), CONSTANT)
    (tmp_path / ".spo.replaced-0").rename(tmp_path / "spo")
    Tracker.load(tmp_path / "spo", keys(5), CONSTANT)


def test_damage_of_a_folder_that_stays_is_still_damage(tmp_path, tracker):
    tracker.snapshot().write(tmp_path / "spo")
    (tmp_path / "spo" / PROMPTS).write_bytes(b"")
    with pytest.raises(SpoCheckpointDamagedError, match="has 0 bytes"):
        Tracker.load(tmp_path / "spo", keys(5), CONSTANT)

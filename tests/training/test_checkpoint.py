"""The tracker's folder beside verl's checkpoint: written before the marker, pruned like verl's, never lost silently."""

import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from spo_verl.data.loader import PrioritizedDataLoader
from spo_verl.errors import SpoCheckpointDamagedError, SpoCheckpointError, SpoStateError
from spo_verl.record import RecordWriter
from spo_verl.tracker import TrackerSettings
from spo_verl.tracker.service import TrackerHost
from spo_verl.training.checkpoint import CheckpointFollower
from spo_verl.training.recording import Recorder
from tests.record.helpers import names, rows

KEYS = np.arange(8 * 16, dtype=np.uint8).reshape(8, 16).view("V16").ravel()


class LocalTracker(TrackerHost):
    """The service's host in this process, with the verbs of its client."""

    def draw(self, size: int) -> Any:
        return self.call("draw", size)

    def digest(self) -> str:
        return self.call("digest")


def follower(root: Path, tracker: TrackerHost, **settings: Any) -> CheckpointFollower:
    config = OmegaConf.create({"default_local_dir": str(root), "resume_mode": "auto", **settings})
    return CheckpointFollower(config, tracker, KEYS, TrackerSettings())


def trained(steps: int = 1) -> LocalTracker:
    tracker = LocalTracker()
    tracker.create(KEYS, TrackerSettings())
    for _ in range(steps):
        tracker.draw(4)
    return tracker


def save_as_verl_does(mine: CheckpointFollower, root: Path, step: int, loader: Any = None) -> None:
    """Our snapshot, verl's actor folder, the dataloader's state, verl's marker, our end."""
    mine.begin_save(step)
    (root / f"global_step_{step}" / "actor").mkdir(parents=True, exist_ok=True)
    loader.state_dict() if loader is not None else mine.finish_write()
    (root / "latest_checkpointed_iteration.txt").write_text(str(step))
    mine.end_save(step)


def test_a_save_is_loaded_again(tmp_path):
    tracker = trained()
    save_as_verl_does(follower(tmp_path, tracker), tmp_path, 5)
    again = LocalTracker()
    follower(tmp_path, again).load(5)
    assert again.digest() == tracker.digest()
    assert again.draw(4).slot_B.tolist() == tracker.draw(4).slot_B.tolist()


def test_the_dataloader_waits_for_the_tracker_before_verl_writes_its_marker(tmp_path, monkeypatch):
    tracker = trained()
    release = threading.Event()
    from spo_verl.tracker.checkpoint.snapshot import Snapshot

    write = Snapshot.write

    def slow(self, *args, **kwargs):
        assert release.wait(30)
        return write(self, *args, **kwargs)

    monkeypatch.setattr(Snapshot, "write", slow)
    mine = follower(tmp_path, tracker)
    loader = PrioritizedDataLoader(list("abcdefgh"), tracker, batch_size=2, before_state_dict=mine.finish_write)
    mine.begin_save(5)  # returns although the writer is held up
    manifest = tmp_path / "global_step_5" / "spo" / "manifest.json"
    assert not manifest.exists()
    threading.Timer(0.3, release.set).start()
    assert loader.state_dict() == {}  # verl's call just before the marker
    assert manifest.exists()
    mine.end_save(5)


def test_the_record_is_cut_with_the_snapshot_and_on_the_disk_before_the_marker(tmp_path):
    writer = RecordWriter(tmp_path / "record", 2**30)
    writer.resume(0)
    for step in (1, 2, 3):
        writer.append(step, rows(step))
    recorder = Recorder(writer, None, mode="kl", run={})
    config = OmegaConf.create({"default_local_dir": str(tmp_path), "resume_mode": "auto"})
    mine = CheckpointFollower(config, trained(), KEYS, TrackerSettings(), recorder=recorder)
    mine.begin_save(3)
    with pytest.raises(SpoStateError, match="rollouts of step 3 after step 3 was over"):
        writer.append(3, rows(3))
    mine.finish_write()  # verl writes its marker after this
    assert names(tmp_path / "record", "rollouts") == [(1, 3)]
    writer.close()


def test_a_failed_write_stops_verl_before_its_marker(tmp_path, monkeypatch):
    from spo_verl.tracker.checkpoint.snapshot import Snapshot

    def fail(self, *args, **kwargs):
        raise SpoCheckpointError("disk full; free some space")

    monkeypatch.setattr(Snapshot, "write", fail)
    mine = follower(tmp_path, trained())
    mine.begin_save(5)
    with pytest.raises(SpoCheckpointError, match="disk full"):
        mine.finish_write()


@pytest.mark.parametrize("raised", [OSError(28, "No space left on device"), RuntimeError("iostream error")])
def test_a_disk_that_is_full_is_named_whatever_verl_raises(tmp_path, monkeypatch, raised):
    mine = follower(tmp_path, trained())
    with pytest.raises(type(raised), match=str(raised.args[-1])), mine.explained(5):  # the disk is not at fault
        raise raised

    def full(**_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    said = f"step 5 in {tmp_path}: No space left on device. Make room"
    with pytest.raises(SpoCheckpointError, match=said), mine.explained(5):
        raise raised
    with pytest.raises(SpoStateError, match="mine"), mine.explained(5):
        raise SpoStateError("mine")


def test_a_save_that_never_reached_the_dataloader_is_an_error(tmp_path):
    mine = follower(tmp_path, trained())
    mine.begin_save(5)
    with pytest.raises(SpoCheckpointError, match="without asking the dataloader"):
        mine.end_save(5)
    mine.finish_write()


@pytest.mark.parametrize("setting", [{"max_actor_ckpt_to_keep": 2}, {"remove_previous_ckpt_in_save": True}])
def test_pruning_follows_verl(tmp_path, setting):
    mine = follower(tmp_path, trained(), **setting)
    earlier = tmp_path / "global_step_1" / "spo"
    earlier.mkdir(parents=True)  # saved by an earlier process: verl does not prune those either
    for step in (2, 3, 4):
        save_as_verl_does(mine, tmp_path, step)
    left = {path.parent.name for path in tmp_path.glob("global_step_*/spo")}
    kept = {"global_step_3", "global_step_4"} if "max_actor_ckpt_to_keep" in setting else {"global_step_4"}
    assert left == {"global_step_1", *kept}


def test_without_a_limit_nothing_is_pruned(tmp_path):
    mine = follower(tmp_path, trained())
    for step in (2, 3, 4):
        save_as_verl_does(mine, tmp_path, step)
    assert len(list(tmp_path.glob("global_step_*/spo"))) == 3


def test_training_from_scratch_starts_from_initial_values(tmp_path):
    tracker = LocalTracker()
    mine = follower(tmp_path, tracker)
    mine.require_marked_folder()
    mine.load(0)
    assert set(tracker.call("values").tolist()) == {0.5}


def test_a_checkpoint_of_another_estimator_starts_the_tracker_anew_with_a_warning(tmp_path, caplog):
    (tmp_path / "global_step_5").mkdir()
    tracker = LocalTracker()
    mine = follower(tmp_path, tracker)
    loader = PrioritizedDataLoader(list("abcdefgh"), tracker, batch_size=2, on_foreign_state=mine.note_foreign_state)
    loader.load_state_dict({"_num_yielded": 3, "_snapshot": {}})  # what verl's own loader saves
    with caplog.at_level("WARNING", logger="spo_verl"):
        mine.load(5)
    assert "saved by another estimator" in caplog.text
    assert tracker.call("size") == 8


def test_a_missing_folder_of_an_spo_checkpoint_is_an_error_and_not_a_fresh_start(tmp_path):
    save_as_verl_does(follower(tmp_path, trained()), tmp_path, 5)
    shutil.rmtree(tmp_path / "global_step_5" / "spo")
    tracker = LocalTracker()
    mine = follower(tmp_path, tracker)
    loader = PrioritizedDataLoader(list("abcdefgh"), tracker, batch_size=2, on_foreign_state=mine.note_foreign_state)
    loader.load_state_dict({})  # what this loader saves
    with pytest.raises(SpoCheckpointDamagedError, match="is missing"):
        mine.load(5)


def test_a_folder_of_another_step_is_an_error(tmp_path):
    save_as_verl_does(follower(tmp_path, trained()), tmp_path, 5)
    (tmp_path / "global_step_9").mkdir()
    shutil.copytree(tmp_path / "global_step_5" / "spo", tmp_path / "global_step_9" / "spo")
    with pytest.raises(SpoCheckpointDamagedError, match="step 5, not of step 9"):
        follower(tmp_path, LocalTracker()).load(9)


def test_a_marker_without_its_folder_is_not_a_fresh_start(tmp_path):
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7")
    with pytest.raises(SpoCheckpointError, match=r"names step 7.*resume_mode=disable"):
        follower(tmp_path, LocalTracker()).require_marked_folder()


def test_a_truncated_marker_is_explained(tmp_path):
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("")
    with pytest.raises(SpoCheckpointError, match="instead of a step"):
        follower(tmp_path, LocalTracker()).require_marked_folder()


def test_a_disabled_resume_ignores_the_marker(tmp_path):
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7")
    follower(tmp_path, LocalTracker(), resume_mode="disable").require_marked_folder()


def test_resume_path_names_the_folder(tmp_path):
    save_as_verl_does(follower(tmp_path / "there", trained()), tmp_path / "there", 5)
    tracker = LocalTracker()
    mine = follower(
        tmp_path / "here", tracker, resume_mode="resume_path", resume_from_path=str(tmp_path / "there/global_step_5")
    )
    mine.load(5)
    assert tracker.call("counters")["drawn"] == 4


EVENT_TIME = TrackerSettings(forgetting_mode="version", references=())


def read_at(tracker: LocalTracker, slot: int, version: int) -> float:
    """Effective sample size of a prompt at a policy version."""
    return float(tracker.call("dispatch", [f"{slot}.{version}"], [slot], version).n_eff_B[0])


def event_time(root: Path, tracker: LocalTracker, keys: np.ndarray = KEYS, **settings: Any) -> CheckpointFollower:
    """A run with forgetting by version and an offline mass of 8 for every prompt."""
    config = OmegaConf.create({"default_local_dir": str(root), "resume_mode": "auto", **settings})
    mass = np.full(len(keys), 4.0)
    return CheckpointFollower(config, tracker, keys, EVENT_TIME, initial_evidence=(mass, mass))


def test_offline_evidence_is_whole_when_the_run_begins_whatever_its_step(tmp_path):
    (tmp_path / "global_step_200").mkdir()
    for step in (0, 200):
        tracker = LocalTracker()
        mine = event_time(tmp_path, tracker)
        mine.note_foreign_state({"_num_yielded": 3})  # at 200 the checkpoint is another estimator's
        mine.load(step)
        assert read_at(tracker, 3, step) == 8.0
        assert read_at(tracker, 4, step + 1) == 7.0


def test_evidence_of_new_prompts_and_of_another_mode_is_whole_at_the_resume(tmp_path):
    old = LocalTracker()
    old.create(KEYS[:6], TrackerSettings(references=()), alpha_P=np.full(6, 2.0), beta_P=np.full(6, 1.0))
    config = OmegaConf.create({"default_local_dir": str(tmp_path), "resume_mode": "auto"})
    save_as_verl_does(CheckpointFollower(config, old, KEYS[:6], TrackerSettings(references=())), tmp_path, 200)
    tracker = LocalTracker()
    event_time(tmp_path, tracker, KEYS[:7]).load(200)
    assert (read_at(tracker, 0, 200), read_at(tracker, 6, 200)) == (3.0, 8.0)
    save_as_verl_does(event_time(tmp_path, tracker, KEYS[:7]), tmp_path, 204)
    again = LocalTracker()
    event_time(tmp_path, again).load(204)
    assert (read_at(again, 1, 204), read_at(again, 7, 204)) == (3.0 * 0.875**4, 8.0)


@pytest.mark.parametrize("content", [b"\xff\xfe", "²".encode(), b"5\x00", b"-5", b"5.0", b"9" * 5000, b"\xf0\x9f"])
def test_a_marker_of_any_content_is_explained(tmp_path, content):
    (tmp_path / "latest_checkpointed_iteration.txt").write_bytes(content)
    with pytest.raises(SpoCheckpointError, match="resume_mode=disable"):
        follower(tmp_path, LocalTracker()).require_marked_folder()


def test_a_folder_in_place_of_the_marker_is_explained(tmp_path):
    (tmp_path / "latest_checkpointed_iteration.txt").mkdir()
    with pytest.raises(SpoCheckpointError, match=r"cannot be read \(Is a directory\)"):
        follower(tmp_path, LocalTracker()).require_marked_folder()


def test_what_cannot_be_pruned_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    mine = follower(tmp_path, trained(), max_actor_ckpt_to_keep=1)
    save_as_verl_does(mine, tmp_path, 2)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with caplog.at_level("WARNING", logger="spo_verl"):
        save_as_verl_does(mine, tmp_path, 3)
    assert "global_step_2/spo cannot be deleted" in caplog.text


def shards(folder: Path, ranks: int) -> None:
    """The names that verl's FSDP checkpoint manager gives its files."""
    (folder / "actor").mkdir(parents=True, exist_ok=True)
    for kind in ("model", "optim", "extra_state"):
        for rank in range(ranks):
            (folder / "actor" / f"{kind}_world_size_{ranks}_rank_{rank}.pt").write_bytes(b"")


@pytest.mark.parametrize(("saved", "nodes", "per_node"), [(2, 1, 1), (1, 1, 2), (16, 1, 8), (8, 2, 8)])
@pytest.mark.parametrize("mode", ["auto", "resume_path"])
def test_shards_of_another_number_of_ranks_are_refused_with_the_ways_out(tmp_path, saved, nodes, per_node, mode):
    folder = tmp_path / "global_step_5"
    shards(folder, saved)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("5\n")
    settings = {"resume_mode": mode, "resume_from_path": str(folder), "nnodes": nodes, "n_gpus_per_node": per_node}
    with pytest.raises(SpoCheckpointError, match=f"saved by {saved} training processes") as refusal:
        follower(tmp_path, LocalTracker(), **settings).require_same_ranks()
    assert f"trainer.n_gpus_per_node = {nodes * per_node}:" in str(refusal.value)
    assert f"merge --backend fsdp --local_dir {folder}/actor" in str(refusal.value)
    assert f"++spo.initial.tracker={folder}/spo" in str(refusal.value)
    # The same number, a run from scratch, and a checkpoint without such files (Megatron's) continue.
    same = {**settings, "nnodes": 1, "n_gpus_per_node": saved}
    follower(tmp_path, LocalTracker(), **same).require_same_ranks()
    follower(tmp_path, LocalTracker(), **{**settings, "resume_mode": "disable"}).require_same_ranks()
    shutil.rmtree(folder / "actor")
    follower(tmp_path, LocalTracker(), **settings).require_same_ranks()


def test_the_names_of_the_shards_are_verls():
    import inspect

    from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

    assert 'f"model_world_size_{self.world_size}_rank_{self.rank}.pt"' in inspect.getsource(FSDPCheckpointManager)


def test_without_a_marker_no_ranks_are_compared(tmp_path):
    shards(tmp_path / "global_step_5", 2)
    follower(tmp_path, LocalTracker(), nnodes=1, n_gpus_per_node=1).require_same_ranks()

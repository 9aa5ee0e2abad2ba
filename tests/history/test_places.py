"""From a path to a run, its newest complete checkpoint and its record."""

import shutil

import pytest

from spo_verl.history.places import HistoryError, find, newest_checkpoint


@pytest.mark.parametrize("name", ["", "record"])
def test_a_run_is_found_with_its_newest_checkpoint_and_record(sync_run, name):
    place = find(sync_run.folder / name)
    assert place.root == sync_run.folder
    assert place.checkpoint == sync_run.folder / "global_step_6" / "spo"
    assert place.record.path == sync_run.folder / "record"
    assert not place.named_checkpoint


@pytest.mark.parametrize("name", ["global_step_3", "global_step_3/spo"])
def test_a_checkpoint_is_found_with_the_record_of_its_run(sync_run, name):
    place = find(sync_run.folder / name)
    assert place.checkpoint == sync_run.folder / "global_step_3" / "spo"
    assert place.record.path == sync_run.folder / "record"
    assert place.named_checkpoint


def test_a_folder_that_holds_the_run_in_checkpoints_will_do(sync_run, tmp_path):
    (tmp_path / "checkpoints").symlink_to(sync_run.folder)
    assert find(tmp_path).checkpoint == tmp_path / "checkpoints" / "global_step_6" / "spo"


def test_a_checkpoint_that_was_moved_has_no_record(sync_run, tmp_path):
    shutil.copytree(sync_run.folder / "global_step_3" / "spo", tmp_path / "kept")
    place = find(tmp_path / "kept")
    assert (place.root, place.record) == (None, None)
    with pytest.raises(HistoryError, match=r"has no record .*spo\.record"):
        place.require_record()


def test_the_newest_complete_checkpoint_is_the_one_that_the_marker_acknowledges(sync_run, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(sync_run.folder, root)
    marker = root / "latest_checkpointed_iteration.txt"

    def newest():
        return newest_checkpoint(root).parent.name

    assert newest() == "global_step_6"
    marker.write_text("3")  # verl had not acknowledged step 6 when it was killed
    assert newest() == "global_step_3"
    marker.write_text("garbage")
    assert newest() == "global_step_6"
    (root / "global_step_6" / "spo" / "manifest.json").unlink()  # still being written
    assert newest() == "global_step_3"
    marker.write_text("2")  # a folder that the marker names is gone: what is there is shown
    assert newest() == "global_step_3"
    shutil.rmtree(root / "global_step_3")
    assert newest_checkpoint(root) is None
    place = find(root)
    assert place.record is not None
    with pytest.raises(HistoryError, match="no complete checkpoint yet"):
        place.require_checkpoint()


def test_what_is_no_run_is_refused_with_what_would_be_one(tmp_path):
    with pytest.raises(HistoryError, match="is not there: name a run's folder"):
        find(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(HistoryError, match="is a file: name a run's folder"):
        find(tmp_path / "file")
    with pytest.raises(HistoryError, match="neither a run's folder nor a checkpoint"):
        find(tmp_path)

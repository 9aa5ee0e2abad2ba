"""Identity, tracker and loader together, in one process, without verl's trainer and without Ray."""

import numpy as np
import torch

from spo_verl.data import PrioritizedDataLoader, content_key, dataset_keys
from spo_verl.tracker import Tracker, TrackerSettings

QUESTIONS = ["1+1", "2+2", "1+1", "3+3"]


def loader_of(questions, tracker, keys, batch_size=2):
    return PrioritizedDataLoader(questions, tracker, batch_size=batch_size, row_of_slot_P=keys.row_of_slot_P)


def test_the_example_of_the_docstring():
    keys = dataset_keys(QUESTIONS, key_fn=content_key)
    tracker = Tracker.create(keys.key_P, TrackerSettings(seed=7))
    loader = loader_of(QUESTIONS, tracker, keys)
    for _ in range(20):
        batch = next(loader)
        first, second = batch["spo_slot"].tolist()
        assert first != second
        assert batch["batch"] == [["1+1", "2+2", "3+3"][slot] for slot in (first, second)]
    assert tracker.counters["drawn"] == 40


def test_uncertain_questions_come_most_often():
    # Of 200 trials, "1+1" always failed and "3+3" always succeeded, "2+2" did either half of the time.
    keys = dataset_keys(QUESTIONS, key_fn=content_key)
    settings = TrackerSettings(seed=3, epsilon=0.0)
    tracker = Tracker.create(
        keys.key_P, settings, alpha_P=np.array([0.5, 100.0, 199.5]), beta_P=np.array([199.5, 100.0, 0.5])
    )
    loader = loader_of(QUESTIONS, tracker, keys, 1)
    drawn = [next(loader)["batch"][0] for _ in range(500)]
    # Weights sqrt(v (1 - v)): v = 0.0025 and 0.9975 give 0.0499, v = 0.5 gives 0.5; the share of "2+2" is
    # 0.5 / (0.5 + 2 * 0.0499) = 0.834.
    # 500 draws: mean 417, standard deviation sqrt(500 * 0.834 * 0.166) = 8.3; the bounds are 5 of them.
    assert 375 <= drawn.count("2+2") <= 459


def test_restored_with_its_tracker_the_sequence_goes_on_as_if_never_stopped(tmp_path):
    questions = [f"{n}+{n}" for n in range(50)]
    keys = dataset_keys(questions, key_fn=content_key)
    settings = TrackerSettings(seed=11)
    tracker = Tracker.create(keys.key_P, settings)
    loader = loader_of(questions, tracker, keys, 8)
    for _ in range(3):
        next(loader)

    tracker.snapshot().write(tmp_path / "spo")
    torch.save(loader.state_dict(), tmp_path / "data.pt")
    expected = [next(loader)["spo_slot"].tolist() for _ in range(4)]

    restored, _ = Tracker.load(tmp_path / "spo", keys.key_P, settings)
    again = loader_of(questions, restored, keys, 8)
    again.load_state_dict(torch.load(tmp_path / "data.pt", weights_only=True))
    assert [next(again)["spo_slot"].tolist() for _ in range(4)] == expected


def test_in_a_reordered_and_extended_dataset_evidence_follows_its_question(tmp_path):
    keys = dataset_keys(QUESTIONS, key_fn=content_key)
    tracker = Tracker.create(
        keys.key_P, TrackerSettings(), alpha_P=np.array([1.0, 2.0, 3.0]), beta_P=np.array([4.0, 5.0, 6.0])
    )
    tracker.snapshot().write(tmp_path / "spo")
    questions = ["3+3", "9+9", "2+2", "1+1"]
    reordered = dataset_keys(questions, key_fn=content_key)
    restored, report = Tracker.load(tmp_path / "spo", reordered.key_P, TrackerSettings())
    alpha_P, beta_P = restored.evidence()
    assert dict(zip(questions, zip(alpha_P.tolist(), beta_P.tolist(), strict=True), strict=True)) == {
        "1+1": (1.0, 4.0),
        "2+2": (2.0, 5.0),
        "3+3": (3.0, 6.0),
        "9+9": (0.5, 0.5),
    }
    assert (report.matched, report.new, report.vanished) == (3, 1, 0)
    batch = loader_of(questions, restored, reordered, 4).fetch(4)
    assert batch["batch"] == [questions[slot] for slot in batch["spo_slot"].tolist()]

"""What is known of every prompt: evidence, identity, counters, the last response; and its checkpoints.

:class:`Tracker` is a plain class; :mod:`spo_verl.tracker.service` hosts one in a Ray actor.
"""

from spo_verl.tracker.checkpoint import Snapshot
from spo_verl.tracker.features import PromptFeatures
from spo_verl.tracker.quota import PromptSources
from spo_verl.tracker.reports import (
    Draw,
    Frozen,
    Late,
    LoadReport,
    ObserveReport,
    Recall,
    StepReport,
    WriteReport,
)
from spo_verl.tracker.responses import StoredResponses
from spo_verl.tracker.settings import TrackerSettings
from spo_verl.tracker.tracker import Tracker

__all__ = [
    "Draw",
    "Frozen",
    "Late",
    "LoadReport",
    "ObserveReport",
    "PromptFeatures",
    "PromptSources",
    "Recall",
    "Snapshot",
    "StepReport",
    "StoredResponses",
    "Tracker",
    "TrackerSettings",
    "WriteReport",
]

"""Offline values: success rates of a policy per prompt, known before training, and how they become evidence.

`OfflineValues` is the one format; the ``from_*`` functions read others into it and report what did not match;
`initial_evidence_for` turns it into the tracker's start. How-to: docs/offline-values.md.
"""

from spo_verl.data.values.accuracy import from_accuracy_column
from spo_verl.data.values.dumps import from_validation_dump
from spo_verl.data.values.initial_evidence import Coverage, initial_evidence_for, initial_evidence_from_tracker
from spo_verl.data.values.match_report import MatchReport
from spo_verl.data.values.merging import merge
from spo_verl.data.values.reference import from_reference_json
from spo_verl.data.values.trackers import from_tracker
from spo_verl.data.values.values_table import FORMAT, FORMAT_VERSION, OfflineValues, provenance

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "Coverage",
    "MatchReport",
    "OfflineValues",
    "from_accuracy_column",
    "from_reference_json",
    "from_tracker",
    "from_validation_dump",
    "initial_evidence_for",
    "initial_evidence_from_tracker",
    "merge",
    "provenance",
]

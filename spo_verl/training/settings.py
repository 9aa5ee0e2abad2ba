"""From the user's ``spo.*`` settings to those of the tracker."""

from __future__ import annotations

from spo_verl.tracker.settings import TrackerSettings

tracker_settings = TrackerSettings.of

"""A setting has one range: what the configuration of a run accepts its tracker accepts, and the other way round."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_verl.config import ForgettingMode, ReadOut, SamplingMode, SpoConfig, parse
from spo_verl.errors import SpoConfigError
from spo_verl.tracker import TrackerSettings
from spo_verl.tracker.settings import KEYS

EDGES = [0.0, 1.0, 1e-300, 0.5, 0.875, 0.96, 1e100, 1e300, math.inf, math.nan]
NUMBERS = st.one_of(
    st.sampled_from(EDGES).flatmap(lambda edge: st.sampled_from([edge, -edge, math.nextafter(edge, 2), edge * 2])),
    st.floats(),
)
WHOLE = st.one_of(
    st.integers(-2, 3),
    st.sampled_from([2**63, 2**128, 10**400]).flatmap(lambda edge: st.integers(edge - 2, edge + 2)),
)
ABSENT = st.none()
MADE = {
    "sampling_mode": st.sampled_from([*get_args(SamplingMode), "kl", "", None]),
    "forgetting_mode": st.sampled_from([*get_args(ForgettingMode), "uniform", "KL", None]),
    "readout": st.sampled_from([*get_args(ReadOut), "kl", "Raw", None]),
    "window": WHOLE | ABSENT | st.integers(999_999, 1_000_001),
    "max_tokens": WHOLE | ABSENT,
    "max_in_flight": WHOLE | ABSENT,
    "seed": WHOLE | ABSENT,
    "quota": ABSENT | st.dictionaries(st.sampled_from(["a", "b/c"]), NUMBERS, min_size=1, max_size=2),
}
SETTINGS = st.fixed_dictionaries({}, optional={name: MADE.get(name, NUMBERS | ABSENT) for name in KEYS})


def section_of(given: dict) -> dict:
    """The same settings as the section ``spo`` of a configuration."""
    section: dict = {}
    for name, value in given.items():
        *parents, last = KEYS[name].split(".")
        place = section
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return section


def accepted(given: dict) -> SpoConfig | None:
    """The configuration, where every setting is in its range; that one may do nothing under a mode is no range."""
    config, problems = parse(section_of(given))
    return config if all("would do nothing" in problem for problem in problems) else None


def refusal(given: dict) -> str:
    """What the tracker says of these settings, "" where it takes them."""
    try:
        TrackerSettings(**given)
    except SpoConfigError as error:
        return str(error)
    return ""


def tracker_accepts(given: dict) -> bool:
    return not refusal(given)


@given(SETTINGS)
@settings(max_examples=60, deadline=None)
def test_configuration_and_tracker_accept_the_same_settings(given):
    config = accepted(given)
    assert (config is not None) == tracker_accepts(given)
    if config is not None:
        of = TrackerSettings.of(config)
        assert {name: getattr(of, name) for name in given} == given


@pytest.mark.parametrize("name", sorted(KEYS))
@given(st.data())
@settings(max_examples=20, deadline=None)
def test_one_setting_alone_is_accepted_by_both_or_by_neither(name, data):
    given = {name: data.draw(MADE.get(name, NUMBERS | ABSENT))}
    assert (accepted(given) is not None) == tracker_accepts(given)


def test_both_have_the_same_settings_and_defaults():
    assert TrackerSettings.of(SpoConfig()) == TrackerSettings()
    assert {entry.name for entry in fields(TrackerSettings)} == {*KEYS, "references"}


@given(SETTINGS)
@settings(max_examples=60, deadline=None)
def test_an_error_names_every_wrong_setting_and_no_other(given):
    alone = {name for name, value in given.items() if not tracker_accepts({name: value, **widest(name)})}
    if crossed(given, alone):
        alone.add("rho_min")
    assert {name for name in KEYS if f" {name}: " in refusal(given)} == alone


def widest(name: str) -> dict:
    """The other bound of the retention, so that it is not in the way."""
    return {"rho_min": {"rho_max": 1.0}, "rho_max": {"rho_min": 5e-324}}.get(name, {})


def crossed(given: dict, alone: set[str]) -> bool:
    both = {"rho_min": 0.875, "rho_max": 0.96} | given
    return not alone & {"rho_min", "rho_max"} and both["rho_min"] > both["rho_max"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("gamma", True), ("gamma", "0.5"), ("seed", True), ("seed", 3.0), ("seed", "3"), ("max_tokens", 8.0),
     ("references", "acting"), ("references", ("no name",)), ("references", ("a", "a")), ("quota", {1: 1.0}),
     ("gamma", np.array(0.5)), ("quota", {"a": np.array([1.0])})],
)  # fmt: skip
def test_a_program_passes_values_of_the_right_type(name, value):
    with pytest.raises(SpoConfigError, match=name):
        TrackerSettings(**{name: value})

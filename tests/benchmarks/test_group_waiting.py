"""benchmarks/group_waiting.py: the paper's printed seconds, and expectations against draws."""

import re

import numpy as np
import pytest

from benchmarks import group_waiting, stragglers
from tests.docs.pages import DOCS

FAMILIES = ("log-normal", "Weibull", "Pareto", "two speeds", "two speeds, likeliest", "exponential")


def test_the_printed_seconds_of_figure_4():
    assert (max(group_waiting.PRINTED_LOW_VARIANCE), max(stragglers.PRINTED_SAMPLES)) == (133, 508)
    # 838 and 1843 seconds in all.
    assert group_waiting.idle(group_waiting.PRINTED_LOW_VARIANCE) == pytest.approx(1 - 838 / 8 / 133)
    assert group_waiting.idle(stragglers.PRINTED_SAMPLES) == pytest.approx(1 - 1843 / 8 / 508)


def test_expectations_agree_with_draws():
    family = stragglers.LogNormal(0.5, 100.0)
    seconds = stragglers.draws(family, 48, 4000)
    found = group_waiting.expected(family)
    assert found["4b"] == pytest.approx(seconds[:, :8].max(axis=1).mean(), rel=0.02)
    assert found["idle"] == pytest.approx(1 - seconds.mean() / seconds[:, :8].max(axis=1).mean(), rel=0.03)
    assert found["5a"] == pytest.approx(stragglers.group_time(seconds, 24, 8).mean(), rel=0.02)
    assert found["5b"] == pytest.approx(np.sort(seconds)[:, 23].mean(), rel=0.02)
    assert found["5c"] == pytest.approx(found["5a"] / found["5b"])


def test_the_command_prints_both_figures(capsys):
    group_waiting.main()
    printed = capsys.readouterr().out
    for text in ("508 s, idle 55%", "133 s, idle 21%", "486 s", "4.34 (printed: 4.35)", "two speeds, likeliest"):
        assert text in printed
    # The numbers of docs/reproduction.md.
    groups = {name: float(re.search(rf"^  {name} +(\d+) s", printed, re.MULTILINE)[1]) for name in FAMILIES}
    pareto = groups.pop("Pareto")
    expected = f"| {min(groups.values()):.0f} to {max(groups.values()):.0f} s, Pareto {pareto:,.0f} s |"
    assert expected in (DOCS / "reproduction.md").read_text()

"""The simulated clocks of benchmarks/stragglers.py, against cases by hand and closed forms."""

import heapq
import json
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks import stragglers
from benchmarks.stragglers import LIKELIEST, LogNormal, Pareto, TwoSpeeds, Weibull

pytestmark = pytest.mark.long

FAMILIES = [LogNormal(1.1, 113.0), Weibull(0.8, 176.0), Pareto(2.5, 60.0), LIKELIEST]
EXPONENTIAL = Weibull(1.0, 50.0)


@dataclass(frozen=True)
class Listed(Weibull):
    """Row after row of a table with a row per slot: each slot's tasks all take as long as ``seconds`` says."""

    shape: float = 1.0
    seconds: tuple[float, ...] = ()

    def sample(self, rng, count):
        return np.repeat(self.seconds, count // len(self.seconds))


def harmonic(n: int) -> float:
    return sum(1 / i for i in range(1, n + 1))


class TestOneBatch:
    DURATION = np.array([1.0, 9.0, 2.0, 3.0, 4.0, 5.0, 8.0, 6.0])

    def test_times_by_hand(self):
        # Pairs are complete after 9, 3, 5 and 8 seconds, fours after 9 and 8.
        assert stragglers.stream_time(self.DURATION, 4) == 4
        assert stragglers.group_time(self.DURATION, 4, 2) == 5
        assert stragglers.group_time(self.DURATION, 4, 4) == 8
        assert stragglers.group_time(self.DURATION, 6, 2) == 8
        assert stragglers.ratio(self.DURATION, 4, 2) == 5 / 4

    def test_leading_axes_are_draws(self):
        both = np.stack([self.DURATION, 2 * self.DURATION[::-1]])
        assert stragglers.stream_time(both, 4).tolist() == [4, 8]
        assert stragglers.group_time(both, 4, 2).tolist() == [5, 10]

    def test_groups_of_one_and_no_surplus_cost_nothing(self):
        duration = stragglers.draws(LIKELIEST, 48, 20)
        assert (stragglers.ratio(duration, 24, 1) == 1).all()
        assert (stragglers.ratio(duration, 48, 8) == 1).all()
        assert (stragglers.ratio(duration, 24, 8) >= 1).all()

    def test_the_printed_group_times(self):
        groups = np.repeat(stragglers.PRINTED_GROUPS, 8)
        assert stragglers.group_time(groups, 24, 8) == stragglers.PAPER_GROUP

    @pytest.mark.parametrize(("batch", "size"), [(4, 3), (3, 2)])
    def test_parts_of_groups_are_refused(self, batch, size):
        with pytest.raises(ValueError, match="whole groups"):
            stragglers.group_time(self.DURATION, batch, size)

    def test_a_seed_is_a_draw(self):
        three = stragglers.draws(LIKELIEST, 48, 3)
        assert (stragglers.draws(LIKELIEST, 48, 1, first=2)[0] == three[2]).all()
        assert (three[0] != three[1]).any()

    def test_started_over_wanted(self):
        assert stragglers.pool(24, 1.0, 8) == 6
        assert stragglers.pool(24, 0.25, 8) == 4
        assert stragglers.pool(96, 0.125, 2) == 54
        assert stragglers.pool(512, 0.0, 16) == 32


class TestFamilies:
    @pytest.mark.parametrize(
        ("family", "peer"),
        [
            (FAMILIES[0], stats.lognorm(1.1, scale=113.0)),
            (FAMILIES[1], stats.weibull_min(0.8, scale=176.0)),
            (FAMILIES[2], stats.pareto(2.5, scale=60.0)),
        ],
        ids=lambda value: getattr(value, "name", ""),
    )
    def test_against_scipy(self, family, peer):
        t = np.array([61.0, 90.0, 150.0, 700.0, 3000.0])
        assert family.density(t) == pytest.approx(peer.pdf(t), rel=1e-12)
        assert family.cdf(t) == pytest.approx(peer.cdf(t), rel=1e-12)
        assert family.survival(t) == pytest.approx(peer.sf(t), rel=1e-12)
        assert family.mean() == pytest.approx(peer.mean(), rel=1e-12)

    def test_two_speeds_is_a_mixture(self):
        family = TwoSpeeds(0.25, 100.0, factor=5.0, fast_sigma=0.2, slow_sigma=0.1)
        fast, slow = stats.lognorm(0.2, scale=100.0), stats.lognorm(0.1, scale=500.0)
        t = np.array([80.0, 110.0, 300.0, 480.0, 600.0])
        assert family.density(t) == pytest.approx(0.75 * fast.pdf(t) + 0.25 * slow.pdf(t), rel=1e-12)
        assert family.cdf(t) == pytest.approx(0.75 * fast.cdf(t) + 0.25 * slow.cdf(t), rel=1e-12)
        assert family.survival(t) == pytest.approx(0.75 * fast.sf(t) + 0.25 * slow.sf(t), rel=1e-12)
        assert family.mean() == pytest.approx(0.75 * fast.mean() + 0.25 * slow.mean(), rel=1e-12)

    @pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
    def test_samples_follow_the_distribution(self, family):
        sample = family.sample(np.random.default_rng(1), 20_000)
        assert stats.kstest(sample, family.cdf).pvalue > 0.001

    @pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
    def test_scaled(self, family):
        twice = family.scaled(2.0)
        assert twice.mean() == pytest.approx(2 * family.mean())
        assert twice.quantile(math.log(0.3)) == pytest.approx(2 * family.quantile(math.log(0.3)), rel=1e-6)


class TestExpectations:
    @pytest.mark.parametrize(("taken", "started"), [(1, 1), (1, 5), (3, 6), (24, 48), (48, 48), (1024, 2048)])
    def test_exponential(self, taken, started):
        # The k-th of n: the sum of 1 / (n - i + 1) for i up to k.
        expected = 50.0 * sum(1 / (started - i + 1) for i in range(1, taken + 1))
        assert stragglers.expected_time(EXPONENTIAL, taken, started) == pytest.approx(expected, rel=1e-8)

    def test_exponential_groups(self):
        assert stragglers.expected_time(EXPONENTIAL, 1, 1, 8) == pytest.approx(50 * harmonic(8), rel=1e-8)
        assert stragglers.expected_time(EXPONENTIAL, 6, 6, 8) == pytest.approx(50 * harmonic(48), rel=1e-8)
        # The first of two pairs: P(T > t) = (1 - F^2)^2 with F = 1 - e^-t, whose integral is 4/2 - 4/3 + 1/4.
        assert stragglers.expected_time(EXPONENTIAL, 1, 2, 2) == pytest.approx(50 * (2 - 4 / 3 + 1 / 4), rel=1e-8)

    @pytest.mark.parametrize(("taken", "started"), [(1, 1), (3, 6), (24, 48), (2048, 4096)])
    def test_pareto(self, taken, started):
        rest = started - taken + 1
        expected = 60.0 * math.exp(
            math.lgamma(started + 1)
            - math.lgamma(rest)
            + math.lgamma(rest - 1 / 2.5)
            - math.lgamma(started + 1 - 1 / 2.5)
        )
        assert stragglers.expected_time(FAMILIES[2], taken, started) == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
    def test_one_of_one_is_the_mean(self, family):
        assert stragglers.expected_time(family, 1, 1) == pytest.approx(family.mean(), rel=1e-5)

    @pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
    def test_simulation_agrees(self, family):
        duration = stragglers.draws(family, 48, 3000)
        for simulated, expected in (
            (stragglers.group_time(duration, 24, 8), stragglers.expected_time(family, 3, 6, 8)),
            (stragglers.stream_time(duration, 24), stragglers.expected_time(family, 24, 48)),
        ):
            assert abs(simulated.mean() - expected) < 4 * simulated.std() / math.sqrt(len(simulated))

    def test_a_very_large_batch(self):
        p = 1 / 1.5
        by_hand = math.log1p(-(p ** (1 / 8))) / math.log1p(-p)
        assert stragglers.limit_ratio(EXPONENTIAL, 0.5, 8) == pytest.approx(by_hand, rel=1e-5)
        assert stragglers.expected_ratio(EXPONENTIAL, 2048, 384, 8) == pytest.approx(by_hand, rel=0.01)

    def test_impossible_and_infinite(self):
        with pytest.raises(ValueError, match="never"):
            stragglers.expected_time(EXPONENTIAL, 7, 6)
        with pytest.raises(ValueError, match="infinite"):
            stragglers.expected_time(Pareto(1.0), 6, 6)


class TestThePaper:
    def test_every_family_has_the_expected_times(self):
        families = stragglers.paper_families()
        for name in ("log-normal", "Weibull", "Pareto", "two speeds"):
            assert stragglers.expected_time(families[name], 3, 6, 8) == pytest.approx(486.0, rel=1e-6)
            assert stragglers.expected_time(families[name], 24, 48) == pytest.approx(112.0, rel=1e-6)
        assert stragglers.expected_time(families["exponential"], 24, 48) == pytest.approx(112.0, rel=1e-6)

    def test_the_ratio_lies_within_its_interval(self):
        found = stragglers.paper_case(stragglers.paper_families()["log-normal"], 3000)
        low, high = found["ratio of means, interval"]
        assert low < stragglers.PAPER_RATIO < high
        assert low < 486 / 112 < high
        assert 0.05 < high - low < 0.2
        low, high = found["ratio of a draw, interval"]
        assert 2.0 < low < 2.6
        assert 7.4 < high < 9.0
        of_draw = stragglers.ratio(stragglers.draws(LogNormal(1.103), 48, 3000), 24, 8)
        assert ((low < of_draw) & (of_draw < high)).mean() == pytest.approx(0.95, abs=0.003)

    def test_the_interval_of_the_ratio_covers_the_truth_as_often_as_it_says(self):
        covered = 0
        for first in range(0, 30_000, 300):
            low, high = stragglers.paper_case(EXPONENTIAL, 300, first)["ratio of means, interval"]
            covered += low < stragglers.expected_ratio(EXPONENTIAL, 24, 6, 8) < high
        assert 88 <= covered <= 100

    def test_other_times_can_be_asked_for(self):
        family = stragglers.fit(LogNormal, 0.1, 3.0, group=300.0, stream=150.0)
        assert stragglers.expected_time(family, 3, 6, 8) == pytest.approx(300.0)
        with pytest.raises(ValueError, match="no shape"):
            stragglers.fit(LogNormal, 0.1, 0.2)

    def test_the_likelihood_of_what_is_printed(self):
        peer = stats.lognorm(0.9, scale=150.0)
        group = np.array(stragglers.PRINTED_GROUPS)
        expected = (
            peer.logpdf(stragglers.PRINTED_SAMPLES).sum()
            + np.log(8 * peer.pdf(group) * peer.cdf(group) ** 7).sum()
            + math.log(stats.beta(24, 25).pdf(peer.cdf(112.0)) * peer.pdf(112.0))
        )
        assert stragglers.log_likelihood(LogNormal(0.9, 150.0)) == pytest.approx(expected, rel=1e-10)

    @pytest.mark.parametrize("name", [field.name for field in fields(TwoSpeeds)])
    def test_no_neighbour_is_likelier(self, name):
        best = stragglers.log_likelihood(LIKELIEST)
        for factor in (0.98, 1.02):
            neighbour = replace(LIKELIEST, **{name: getattr(LIKELIEST, name) * factor})
            assert stragglers.log_likelihood(neighbour) < best


class TestSteadyState:
    """Two slots by hand: one takes 1 second each time, the other 3 seconds."""

    def test_streams_by_hand(self):
        flow = stragglers.refilled_streams(Listed(seconds=(1.0, 3.0)), 2, 4, 3, np.random.default_rng(0))
        assert flow.formed_K.tolist() == [3, 6, 9]
        assert np.sort(flow.duration_KB, axis=1).tolist() == [[1, 1, 1, 3]] * 3
        assert np.sort(flow.start_KB, axis=1).tolist() == [[0, 0, 1, 2], [3, 3, 4, 5], [6, 6, 7, 8]]
        found = flow.after(1)
        assert found["rate"] == 4 / 3
        assert found["age"] == (3 + 3 + 2 + 1) / 4
        assert found["versions"] == 0
        assert found["duration"] == 1.5

    def test_versions_by_hand(self):
        # Batches of one from both slots: finishes at 1, 2, 3 and 3, started at 0, 1, 2 and 0.
        flow = stragglers.refilled_streams(Listed(seconds=(1.0, 3.0)), 2, 1, 4, np.random.default_rng(0))
        assert flow.formed_K.tolist() == [1, 2, 3, 3]
        assert flow.after(0)["versions"] == (0 + 0 + 0 + 3) / 4

    def test_refilled_groups_by_hand(self):
        # In order of starting, pairs are (0, 0), (1, 2), (3, 3) and so on; they are complete at 3, 3, 6, 6.
        flow = stragglers.refilled_groups(Listed(seconds=(1.0, 3.0)), 2, 4, 3, 2, np.random.default_rng(0))
        assert flow.formed_K.tolist() == [3, 6, 9]
        assert np.sort(flow.start_KB, axis=1)[0].tolist() == [0, 0, 1, 2]

    def test_groups_that_overtake(self):
        # Pairs: (a, b) at 0, (c at 0, a at 1), (b at 1, a at 2), ...; c takes 10 seconds, so the second one is late.
        flow = stragglers.refilled_groups(Listed(seconds=(1.0, 1.0, 10.0)), 3, 2, 6, 2, np.random.default_rng(0))
        assert flow.formed_K.tolist() == [1, 3, 4, 5, 6, 7]
        # From the third batch on one of the two was started before the last batch was formed, at 2, 3, 4 and 5.
        assert flow.after(0)["versions"] == 4 / 12

    # In the last two a group that starts much later is complete first.
    @pytest.mark.parametrize(
        ("slots", "size", "batch", "batches", "seed"),
        [(7, 1, 6, 50, 3), (7, 2, 6, 50, 3), (7, 3, 6, 50, 3), (9, 40, 40, 1, 2), (9, 40, 40, 1, 4)],
    )
    def test_against_a_queue_of_events(self, slots, size, batch, batches, seed):
        seconds = tuple(np.random.default_rng(seed).lognormal(0.0, 1.5, slots))
        free = [(0.0, slot) for slot in range(slots)]
        ready, slowest = [], 0.0
        for task in range(6000):
            begin, slot = heapq.heappop(free)
            end = begin + seconds[slot]
            heapq.heappush(free, (end, slot))
            slowest = max(slowest, end)
            if task % size == size - 1:
                ready.append(slowest)
                slowest = 0.0
        formed = np.sort(ready)[batch // size - 1 :: batch // size][:batches]
        flow = stragglers.refilled_groups(
            Listed(seconds=seconds), slots, batch, batches, size, np.random.default_rng(0)
        )
        assert flow.formed_K == pytest.approx(formed, rel=1e-9)
        if size == 1:
            flow = stragglers.refilled_streams(Listed(seconds=seconds), slots, batch, batches, np.random.default_rng(0))
            assert flow.formed_K == pytest.approx(formed, rel=1e-9)

    def test_held_groups_by_hand(self):
        # Two pairs, (1, 1) and (3, 3) seconds: the sampled table has a row per pair.
        flow = stragglers.held_groups(Listed(seconds=(1.0, 3.0)), 4, 8, 2, 2, np.random.default_rng(0))
        assert flow.formed_K.tolist() == [3, 6]
        assert np.sort(flow.duration_KB, axis=1)[0].tolist() == [1, 1, 1, 1, 1, 1, 3, 3]

    def test_dropped_by_hand(self):
        flow = stragglers.dropped(Listed(seconds=(1.0, 9.0, 2.0, 3.0)), 4, 2, 1, 1, np.random.default_rng(0))
        assert (flow.formed_K.tolist(), flow.duration_KB.tolist()) == ([2], [[1, 2]])
        flow = stragglers.dropped(Listed(seconds=(1.0, 9.0, 2.0, 3.0)), 4, 2, 1, 2, np.random.default_rng(0))
        assert (flow.formed_K.tolist(), flow.duration_KB.tolist()) == ([3], [[2, 3]])

    def test_against_renewal_theory(self):
        slots, batch, size = 64, 32, 8
        found = stragglers.steady(EXPONENTIAL, slots, batch, 1500, size)
        rate = slots / 50.0
        streams = found["streams, refilled"]
        assert streams["rate"] == pytest.approx(rate, rel=0.02)
        assert streams["versions"] == pytest.approx(slots / batch, rel=0.02)
        assert streams["age"] == pytest.approx(50 + (batch - 1) / 2 / rate, rel=0.02)
        assert streams["bias"] == pytest.approx(1.0, abs=0.02)
        groups = found["groups, refilled"]
        assert groups["rate"] == pytest.approx(rate, rel=0.02)
        assert groups["bias"] == pytest.approx(1.0, abs=0.02)
        # The members start one after another: complete later than its slowest member alone would be.
        assert groups["age"] > 50 * harmonic(8)
        held = found["groups, slots held"]
        assert held["rate over streams"] == pytest.approx(1 / harmonic(8), rel=0.02)
        assert held["age"] == pytest.approx(50 * harmonic(8) + (batch / size - 1) / 2 / (held["rate"] / size), rel=0.02)
        cut = found["streams, late dropped"]
        kth = [50 * (harmonic(slots) - harmonic(slots - k)) for k in range(1, batch + 1)]
        assert cut["bias"] == pytest.approx(sum(kth) / batch / 50, rel=0.02)
        assert cut["rate"] == pytest.approx(batch / kth[-1], rel=0.02)
        assert cut["versions"] == 0
        assert found["groups, late dropped"]["rate"] == pytest.approx(
            batch / stragglers.expected_time(EXPONENTIAL, batch // size, slots // size, size), rel=0.02
        )

    def test_the_first_batches_are_short(self):
        bias = stragglers.start_up(EXPONENTIAL, 64, 32, 20, 100)
        assert bias[0] < 0.4
        assert bias[-1] == pytest.approx(1.0, abs=0.05)

    def test_first_finishers(self):
        assert stragglers.first_finishers(EXPONENTIAL, 0.0, 1, 64, 200) == pytest.approx(1.0, abs=0.02)
        # The mean of the first n/2 of n exponentials is 1 - ln 2 for many.
        assert stragglers.first_finishers(EXPONENTIAL, 1.0, 1, 64, 200) == pytest.approx(1 - math.log(2), abs=0.02)


def test_the_command(tmp_path, capsys):
    file = tmp_path / "found.json"
    stragglers.main(
        ["simulate", "--seeds", "50", "--slots", "32", "--batch", "16", "--batches", "20", "--json", str(file)]
    )
    out = capsys.readouterr().out
    assert "4.34" in out
    assert "Length bias" in out
    found = json.loads(file.read_text())
    assert found["settings"]["seeds"] == 50
    at_once = [row for row in found["tails"] if row["surplus"] == 0]
    assert all(value == pytest.approx(1.0, rel=1e-4) for row in at_once for value in row["ratio of batch"].values())
    assert all(value > 1 for row in found["tails"] if row["surplus"] == 0.5 for value in row["ratio of batch"].values())


def test_figures(tmp_path):
    pytest.importorskip("matplotlib")
    result = {
        "settings": {"seeds": 20, "first_seed": 0},
        "steady": {name: stragglers.steady(EXPONENTIAL, 32, 16, 10, 8) for name in ("one", "two", "three")},
    }
    paths = stragglers.draw(result, tmp_path / "figures")
    assert [path.read_bytes()[:4] for path in paths] == [b"\x89PNG"] * 2
    for figure in (stragglers.draw_ratio(result["settings"]), stragglers.draw_steady(result["steady"])):
        legends = [*figure.legends, *(axis.get_legend() for axis in figure.axes)]
        fonts = [text.get_fontsize() for legend in legends if legend for text in legend.get_texts()]
        fonts += [text.get_fontsize() for axis in figure.axes for text in (axis.xaxis.label, *axis.get_xticklabels())]
        assert min(fonts) * 700 / figure.get_size_inches()[0] / 72 >= 12  # pixels, where a README shows it
        assert all(axis.get_xlabel() for axis in figure.axes)
    left, right = stragglers.draw_ratio(result["settings"]).axes
    assert sum(bar.get_height() for bar in left.patches) <= 200  # percent, two families
    assert (left.get_ylabel(), right.get_xlabel()) == ("draws per bin of 0.2, percent", "surplus, percent of the batch")


def test_real_runs_are_drawn_again_without_a_launch(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(Path(stragglers.__file__).parent))
    one = {"updates": 10, "seconds": 20.0, "idle_share": 0.5, "timeline": {"seconds": [0, 1], "active": [8, 3]}}
    (tmp_path / "measured.json").write_text(json.dumps({"spo": one, "grpo": one, "places": 9.0}))
    stragglers.main(["real", "--from", str(tmp_path / "measured.json"), "--plot", str(tmp_path / "real.png")])
    assert (tmp_path / "real.png").read_bytes()[:4] == b"\x89PNG"


def test_a_command_must_be_named(capsys):
    with pytest.raises(SystemExit):
        stragglers.main([])
    assert "simulate" in capsys.readouterr().err


class TestLate:
    SECONDS = (1.0, 5.0, 2.0, 4.0, 1.0, 3.0)
    """Two steps by hand: a batch of two, one more in flight."""

    def figures(self, policy):
        given = iter(self.SECONDS)
        return stragglers.late_run(lambda count: np.array([next(given) for _ in range(count)]), policy, 2, 1, 2, 2.0)

    def test_carried(self):
        # 0-2 s: 1, 2 of (1, 5, 2). 2-5 s: that of 5 s goes on beside (4, 1); after 3 s the second batch is 1 and 5.
        expected = {"updates per hour": 1440, "old": 1 / 4, "versions": 1 / 4, "bias": 9 / 8, "evidence bias": 9 / 8}
        assert self.figures("carry") == pytest.approx({**expected, "outcomes": 1, "idle": 1 - 9 / 15, "untrained": 0})

    def test_dropped(self):
        # The 5 s end at 5 s and are replaced by 3 s; the second batch is 1 and 4, at 6 s.
        expected = {"updates per hour": 1200, "old": 0, "versions": 0, "bias": 1, "evidence bias": 13 / 10}
        expected |= {"outcomes": 5 / 4, "idle": 1 - 13 / 18, "untrained": 1 - 8 / 13}
        assert self.figures("drop") == pytest.approx(expected)

    def test_stopped(self):
        # 2 s of the 5 are spent; then (4, 1, 3), of which 1 and 3 are the batch at 5 s and 3 s of the 4 are spent.
        expected = {"updates per hour": 1440, "old": 0, "versions": 0, "bias": 7 / 8, "evidence bias": 7 / 8}
        expected |= {"outcomes": 1, "idle": 1 - 12 / 15, "untrained": 5 / 12}
        assert self.figures("abort") == pytest.approx(expected)

    def test_without_a_surplus_nothing_is_late(self):
        rows = stragglers.late_table({"exponential": EXPONENTIAL}, 8, [0.0], 40, seed=1)["exponential, surplus 0"]
        assert rows["carry"] == rows["drop"] == rows["abort"]
        assert (rows["carry"]["old"], rows["carry"]["untrained"]) == (0, pytest.approx(0))

    def test_the_command(self, tmp_path, capsys):
        path = tmp_path / "late.json"
        stragglers.main(["late", "--batch", "16", "--surplus", "0.5", "--steps", "20", "--json", str(path)])
        found = json.loads(path.read_text())
        assert "two speeds, likeliest, surplus 0.5; batch 16, 20 steps" in capsys.readouterr().out
        rows = found["log-normal, surplus 0.5"]
        assert list(rows) == list(stragglers.LATE_POLICIES)
        assert rows["drop"]["old"] == rows["abort"]["old"] == 0 < rows["carry"]["old"]

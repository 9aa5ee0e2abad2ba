"""Quotas in a run: refused with all problems when the data is read, logged, and reported with every step."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf
from verl.trainer.ppo.v1.utils import MetricsAggregator

from spo_verl.config import SamplingConfig, SpoConfig, ValueConfig
from spo_verl.data import dataset_keys
from spo_verl.errors import SpoConfigError
from spo_verl.tracker import PromptSources, TrackerSettings
from spo_verl.tracker.service import TrackerHost
from spo_verl.training.checkpoint import CheckpointFollower
from spo_verl.training.early_warnings import EarlyWarnings, RunFacts
from spo_verl.training.metrics import METRICS, Stopwatch, pattern_of, prefixed
from spo_verl.training.quotas import SourceRecord, read_sources, sources_of_readout
from spo_verl.training.trainer import SpoTrainer
from tests.data.rows import row, table

ROWS = [row(f"{n} + 1", data_source="openai/gsm8k" if n % 3 else "minerva") for n in range(12)]


def with_quota(quota):
    return SpoConfig(sampling=SamplingConfig(quota=quota))


def read(quota, batch_size=4, rows=ROWS):
    return read_sources(with_quota(quota), rows, dataset_keys(rows), batch_size)


def test_without_quotas_no_column_is_read():
    assert read(None, rows=[row("1 + 1", data_source=None)]) is None
    assert TrackerSettings.of(SpoConfig()) == TrackerSettings()


def test_the_calibrated_read_out_tells_sources_apart_where_a_table_states_them(caplog):
    spo = SpoConfig(value=ValueConfig(readout="calibrated"))
    with caplog.at_level(logging.INFO, logger="spo_verl"):
        found = sources_of_readout(spo, table(*ROWS), dataset_keys(ROWS))
        assert found.counts(np.arange(12)).tolist() == [4, 8]
        assert sources_of_readout(spo, ROWS, dataset_keys(ROWS)) is None
    assert "tells 2 data sources apart" in caplog.text
    assert "does not tell data sources apart: no table with a data_source" in caplog.text
    assert sources_of_readout(SpoConfig(), table(*ROWS), dataset_keys(ROWS)) is None


def test_the_parts_of_a_batch_are_logged(caplog):
    with caplog.at_level(logging.INFO, logger="spo_verl"):
        sources = read({"openai/gsm8k": 3, "minerva": 1}, 6)
    assert sources.names == ("minerva", "openai/gsm8k")
    assert sources.prompts_Q.tolist() == [4, 8]
    assert "draws on average minerva 1.5 of 6 (4 prompts), openai/gsm8k 4.5 of 6 (8 prompts)" in caplog.text


def test_the_tracker_gets_the_quota():
    assert TrackerSettings.of(with_quota({"a": 3, "b": 1})).quota == {"a": 3.0, "b": 1.0}


def test_a_run_without_and_with_a_checkpoint_gets_them(tmp_path):
    sources = read({"openai/gsm8k": 3, "minerva": 1})
    config = OmegaConf.create({"default_local_dir": str(tmp_path), "resume_mode": "auto"})
    settings = TrackerSettings.of(with_quota({"openai/gsm8k": 3, "minerva": 1}))
    first, second = TrackerHost(), TrackerHost()
    CheckpointFollower(config, first, dataset_keys(ROWS).key_P, settings, sources=sources).load(0)
    first.begin_save(tmp_path / "global_step_5" / "spo", 5)
    first.end_save()
    CheckpointFollower(config, second, dataset_keys(ROWS).key_P, settings, sources=sources).load(5)
    drawn = [host.call("draw", 8).slot_B for host in (first, second)]
    assert drawn[0].tolist() == drawn[1].tolist()
    assert sources.counts(drawn[0]).tolist() == [2, 6]


def test_all_problems_come_in_one_message():
    with pytest.raises(SpoConfigError) as refusal:
        read({"gsm8k": 0.5, "openai/gsm8k": 0.5})
    message = str(refusal.value)
    assert "2 problems" in message
    assert "names 'gsm8k', but no prompt of the training data has that data_source" in message
    assert "'minerva' (4 prompts), 'openai/gsm8k' (8 prompts)" in message
    assert "says nothing about 'minerva' (4 prompts)" in message


def test_too_many_of_a_source_are_refused_with_the_arithmetic():
    read({"openai/gsm8k": 0.5, "minerva": 0.5}, 8)
    with pytest.raises(
        SpoConfigError, match="'minerva' 0.5 / 1 x 9 = 4.5 prompts of a batch of 9, so up to 5 .* has 4;"
    ):
        read({"openai/gsm8k": 0.5, "minerva": 0.5}, 9)


def test_a_dataset_without_sources_is_refused():
    with pytest.raises(SpoConfigError, match="has no 'data_source'"):
        read({"a": 1}, rows=[{"prompt": [{"role": "user", "content": "1 + 1"}]}])


def record_of_a_step():
    record = SourceRecord(PromptSources.of(["minerva", "org/a.b", "org/a.b", "summary"]))
    record.note_draw(np.array([0, 1]))
    record.note_draw(np.array([2, 1]))
    record.note_values({"source/minerva/value_mean": 0.25, "source/org/a.b/value_mean": 0.5, "value_mean": 0.4})
    return record


def test_metrics_of_a_step_and_the_next_one():
    record = record_of_a_step()
    assert record.drain() == {
        "source/minerva/value_mean": 0.25,
        "source/org/a_b/value_mean": 0.5,
        "source/minerva/drawn_share": 0.25,
        "source/org/a_b/drawn_share": 0.75,
        "source/summary/drawn_share": 0.0,
    }
    assert record.drain() == {}


def test_names_of_sources_do_not_need_an_explanation_each():
    metrics = prefixed(record_of_a_step().drain())
    assert metrics["spo/source/org/a_b/drawn_share"] == 0.75
    assert pattern_of("source/org/a_b/drawn_share") == "source/<name>/drawn_share"
    assert {pattern_of(key) for key in METRICS} == set(METRICS)
    with pytest.raises(KeyError, match="source/org/a.b/luck"):
        prefixed({"source/org/a.b/luck": 1.0})


def test_they_reach_the_log_past_the_aggregator_which_would_misread_some_names():
    aggregator = MetricsAggregator()
    for value in (0.1, 0.3):
        aggregator.add_step_metrics({"spo/source/minerva/drawn_share": value}, sample_count=1)
    assert aggregator.get_aggregated_metrics()["spo/source/minerva/drawn_share"] == 0.1, "the reason is gone"

    class Mode:
        def _compute_metrics(self, batch, metrics):
            metrics["verl"] = 1.0

    class Trainer(SpoTrainer, Mode):
        def __init__(self):
            self._stopwatch, self._source_record = Stopwatch(), record_of_a_step()
            self._recorder, self.global_steps = SimpleNamespace(numbers=lambda step, metrics: None), 1
            self._warnings = EarlyWarnings(RunFacts(batch=4))

    metrics: dict[str, float] = {}
    Trainer()._compute_metrics(None, metrics)
    assert metrics["verl"] == 1.0
    assert metrics["spo/source/minerva/drawn_share"] == 0.25

"""The static baseline: the value before training, read at every start."""

import numpy as np

from spo_verl.config import AdvantageConfig, InitialConfig, SpoConfig
from spo_verl.data.values import OfflineValues, provenance
from spo_verl.training.initial import initial_evidence, static_values

KEY_P = np.frombuffer(bytes(range(48)), dtype="V16")


def settings(file, baseline="initial"):
    return SpoConfig(initial=InitialConfig(values=str(file)), advantage=AdvantageConfig(baseline=baseline))


def test_it_is_the_smoothed_rate_and_one_half_where_nothing_is_known(tmp_path):
    file = tmp_path / "values.parquet"
    source = provenance("test", policy="p", sampling={})
    OfflineValues(KEY_P[:2], np.array([6.0, 0.0]), np.array([8, 8]), (source,)).write(file)
    spo = settings(file)
    # Jeffreys: (6 + 1/2) / (8 + 1) and (1/2) / 9; the third prompt has no value
    np.testing.assert_allclose(static_values(spo, initial_evidence(spo, KEY_P)), [6.5 / 9, 0.5 / 9, 0.5])


def test_there_is_none_under_other_baselines(tmp_path):
    evidence = (np.ones(3), np.ones(3))
    for baseline in ("value", "none"):
        assert static_values(settings(tmp_path / "x", baseline), evidence) is None

"""Estimating offline values through `spo-verl values estimate` and verl's rollout workers, interrupted and taken up
again, and training from them.
"""

import re

import numpy as np
import pytest

from spo_verl.data.values import OfflineValues
from tests.cli.helpers import run as spo_verl
from tests.support.scripted_agent import several_outputs
from tests.system.harness import PROMPTS, question, scripted_values, toy_keys

pytestmark = [pytest.mark.system, pytest.mark.timeout(5400)]


def test_the_interrupted_estimation_left_its_finished_part(estimating, workdir):
    assert estimating.returncode == -9
    assert "Offline values" in estimating.log


def test_the_second_call_goes_on_and_leaves_one_file(estimated, workdir):
    assert estimated.returncode == 0, estimated.log[-3000:]
    before = int(re.search(r"continuing after (\d+) finished prompts", estimated.log).group(1))
    assert 0 < before < PROMPTS  # parts of ten prompts; how many were finished depends on the moment of the kill
    assert before % 10 == 0
    assert (workdir / "values.parquet").exists()
    assert not (workdir / "values.parquet.parts").exists()


def test_the_second_call_ends_with_what_it_found_and_how_to_train(estimated, workdir):
    end = " ".join(estimated.log[-2000:].split())  # a table, wrapped at the width of the terminal
    assert f"prompts {PROMPTS} (3 without a trial)" in end
    assert re.search(r"source estimate, .* responses 168, response_tokens \d+, prompt_tokens \d+", end)
    assert end.endswith(f"written; train with ++spo.initial.values={workdir}/values.parquet")


def test_the_values_are_those_of_the_scripted_outcomes(estimated, workdir):
    values = OfflineValues.read(workdir / "values.parquet")
    successes, trials = scripted_values()
    assert values.key_N.tobytes() == toy_keys().tobytes()
    assert values.trials_N.tolist() == trials.tolist()
    assert values.successes_N.tolist() == successes.tolist()
    assert 0 in values.trials_N  # prompts that failed in every session
    [source] = values.source
    assert source["kind"] == "estimate"
    assert source["policy"].endswith("/model")
    assert source["sampling"]["temperature"] == 1.0


def test_the_file_says_what_the_estimation_cost_over_both_calls(estimated, workdir):
    values = OfflineValues.read(workdir / "values.parquet")
    [source] = values.source
    assert source["responses"] == values.trials_N.sum()
    # A rollout of two outputs has the tokens of both. A prompt is one token per character and two for the roles.
    outputs = [trials * (1 + several_outputs(index)) for index, trials in enumerate(values.trials_N.tolist())]
    lengths = [len(question(index)) + 2 for index in range(PROMPTS)]
    assert source["prompt_tokens"] == np.dot(outputs, lengths)
    assert sum(outputs) < source["response_tokens"] <= 8 * sum(outputs)  # one to eight each
    shown = spo_verl("values", "show", workdir / "values.parquet").stdout
    assert f"response_tokens {source['response_tokens']}" in " ".join(shown.split())


def test_training_starts_from_partial_values_and_says_what_they_cover(spo, workdir):
    values = OfflineValues.read(workdir / "partial.parquet")
    covered = int((values.trials_N > 0).sum())
    assert covered < PROMPTS - 10  # those without a trial are not covered either
    assert f"offline values cover {covered} of {PROMPTS} prompts" in spo.log
    # the value of a covered prompt is (successes + 1/2) / (trials + 1), of the others 1/2
    tried = values.trials_N > 0
    value = np.full(PROMPTS, 0.5)
    value[: PROMPTS - 10][tried] = (values.successes_N[tried] + 0.5) / (values.trials_N[tried] + 1)
    first = spo.metrics()[3]
    assert first["spo/n_eff/mean"] > 4.0  # mass 8 for covered prompts, against 1 without values
    assert abs(first["spo/value/mean"] - value.mean()) < 0.1

"""Real problems through identity, offline values and the loader. Where they are looked for: tests/support/gsm8k.py."""

import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from spo_verl.data import PrioritizedDataLoader, dataset_keys, prompt_key
from spo_verl.data.values import OfflineValues, from_accuracy_column, from_reference_json, initial_evidence_for
from spo_verl.data.values import from_validation_dump as from_dump
from spo_verl.tracker import Tracker, TrackerSettings
from tests.support import gsm8k
from tests.support.gsm8k import TRIALS

pytestmark = gsm8k.needs_gsm8k


@pytest.fixture(scope="module")
def rows():
    return gsm8k.rows("train")


@pytest.fixture(scope="module")
def dataset(rows, tmp_path_factory):
    from verl.utils.dataset.rl_dataset import RLHFDataset

    folder = tmp_path_factory.mktemp("gsm8k")
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    config = OmegaConf.create({"cache_dir": str(folder / "verl"), "filter_overlong_prompts": False})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        yield RLHFDataset(str(folder / "train.parquet"), None, config)


@pytest.fixture(scope="module")
def keys(dataset):
    return dataset_keys(dataset)


@pytest.fixture(scope="module")
def values(dataset, keys):
    return from_accuracy_column(dataset, "extra_info.accuracy", TRIALS, keys=keys, policy="made up")[0]


def test_every_problem_is_a_prompt_of_its_own(dataset, keys, rows):
    different = {(one["prompt"][0]["content"], one["reward_model"]["ground_truth"]) for one in rows}
    assert (keys.rows, keys.prompts, keys.duplicates) == (7473, len(different), 7473 - len(different))
    for number in (0, 1, 3000, 7472):
        assert keys.key_P[keys.slot_of_row_N[number]].tobytes() == prompt_key(rows[number])
        assert keys.key_P[keys.slot_of_row_N[number]].tobytes() == prompt_key(dataset[number])


def test_train_and_test_have_no_prompt_in_common(keys):
    held_out = dataset_keys(gsm8k.rows("test"))
    assert held_out.rows == 1319
    assert not {key.tobytes() for key in keys.key_P} & {key.tobytes() for key in held_out.key_P}


def test_the_accuracies_survive_import_file_and_initialisation(values, keys, rows, tmp_path):
    values.write(tmp_path / "values.parquet")
    alpha_P, beta_P, coverage = initial_evidence_for(OfflineValues.read(tmp_path / "values.parquet"), keys.key_P)
    stated_P = [rows[number]["extra_info"]["accuracy"] for number in keys.row_of_slot_P.tolist()]
    # N_0 = 8, n = 8: alpha = 8 (8 accuracy + 1/2) / 9
    expected_P = [0.5 if accuracy is None else 8 * (8 * accuracy + 0.5) / 9 for accuracy in stated_P]
    assert alpha_P == pytest.approx(expected_P)
    assert alpha_P + beta_P == pytest.approx([1.0 if accuracy is None else 8.0 for accuracy in stated_P])
    assert coverage.covered == sum(accuracy is not None for accuracy in stated_P)
    assert 0.9 < coverage.share < 0.92, "ten of eleven rows have an accuracy"


def test_the_loader_draws_from_it_by_what_the_values_say(dataset, keys, values):
    alpha_P, beta_P, _ = initial_evidence_for(values, keys.key_P, prior="none")
    tracker = Tracker.create(keys.key_P, TrackerSettings(epsilon=0.0, seed=5), alpha_P=alpha_P, beta_P=beta_P)
    loader = PrioritizedDataLoader(
        dataset, tracker, batch_size=64, row_of_slot_P=keys.row_of_slot_P, collate_fn=lambda items: {"items": items}
    )
    drawn = []
    for _ in range(10):
        batch = next(loader)
        slot_B = batch["spo_slot"].tolist()
        assert len(set(slot_B)) == 64
        assert [prompt_key(item) for item in batch["items"]] == [keys.key_P[slot].tobytes() for slot in slot_B]
        drawn += slot_B
    # Without prior and exploration, prompts that were always or never solved weigh nothing.
    value_P = alpha_P / (alpha_P + beta_P)
    settled_P = (value_P == 0) | (value_P == 1)
    assert settled_P.mean() > 0.15
    assert not settled_P[drawn].any()
    # Weights sqrt(v (1 - v)): the mean over draws exceeds the plain mean over prompts, which the zeros pull down.
    weight_P = np.sqrt(value_P * (1 - value_P))
    # E[w under the draw] = sum w^2 / sum w, as 64 of 7473 without replacement hardly differ from draws with it;
    # 640 draws, standard deviation below 0.5 / 4: bound 5 * 0.125 / sqrt(640).
    assert weight_P[drawn].mean() == pytest.approx((weight_P**2).sum() / weight_P.sum(), abs=5 * 0.125 / np.sqrt(640))


def test_the_recipes_file_and_verls_dump_of_the_same_outcomes_give_the_same_values(dataset, keys, rows, tmp_path):
    outcomes = {number: [int(trial < number % 5) for trial in range(4)] for number in range(0, 7473, 37)}
    texts = {rows[number]["prompt"][0]["content"]: scores for number, scores in outcomes.items()}
    (tmp_path / "offline_values.json").write_text(json.dumps(texts))
    with (tmp_path / "0.jsonl").open("w", encoding="utf-8") as dump:
        for number, scores in outcomes.items():
            rendered = f"system\nYou solve problems.\nuser\n{rows[number]['prompt'][0]['content']}\nassistant\n"
            for score in scores:
                truth = rows[number]["reward_model"]["ground_truth"]
                dump.write(json.dumps({"input": rendered, "gts": truth, "score": score, "step": 0}) + "\n")
    by_text, text_report = from_reference_json(tmp_path / "offline_values.json", dataset, keys=keys)
    by_line, line_report = from_dump(tmp_path / "0.jsonl", dataset, keys=keys)
    assert by_text.digest() == by_line.digest()
    assert len(by_text) == len(outcomes) == 202
    assert by_text.successes_N.tolist() == [float(number % 5) for number in outcomes]
    for report in (text_report, line_report):
        assert (report.unmatched_entries, report.shared_entries) == ((), ())
        assert len(report.unmatched_row_U) == keys.prompts - 202

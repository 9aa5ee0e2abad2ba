"""Histograms and the table of samples reach each backend through verl's own loggers, and say what happened.

TensorBoard and W&B (offline) are the real ones. MLflow and trackio are not in the environment: modules of their names
note the calls, whose forms were tried on mlflow 3.17 and trackio 0.43.
"""

import json
import logging
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from verl.utils.tracking import Tracking

from spo_verl.config import SpoConfig, read
from spo_verl.training import log_probs, trainer
from spo_verl.training.samples import (
    BACKENDS,
    COLUMNS,
    SAMPLES,
    TEXT,
    SampleLog,
    as_markdown,
    chosen_sessions,
    shortened,
    step_samples,
)
from tests.training.simulated_run import Setting, run, somehow

NASTY = "```python\nprint('|')\n````` 数学 <b>\x1b[0m"


def samples_of(reward_S, value_S, rho_B=(0.9, 0.96), texts=lambda chosen: [(f"prompt {one}", NASTY) for one in chosen]):
    """Session s is of row 1010 + s of the dataset; its normalised advantage is twice the raw one."""
    raw_S = np.asarray(reward_S) - np.asarray(value_S)
    return step_samples(
        raw_S=raw_S,
        advantage_S=2 * raw_S,
        reward_S=np.asarray(reward_S),
        value_S=np.asarray(value_S),
        row_S=1010 + np.arange(len(raw_S)),
        evidence=(np.array([1.0, 3.0]), np.array([3.0, 1.0])),
        rho_B=np.asarray(rho_B),
        texts=texts,
    )


def made_samples():
    return samples_of([1.0, 0.0, 1.0, 0.0], [0.9, 0.2, 0.4, 0.5])


def test_the_numbers_are_those_of_the_step():
    made = made_samples()
    assert made.histograms["value"].tolist() == [0.25, 0.75]
    assert made.histograms["n_eff"].tolist() == [4.0, 4.0]
    assert made.histograms["raw_advantage"] == pytest.approx([0.1, -0.2, 0.6, -0.5])
    assert made.histograms["retention"].tolist() == [0.9, 0.96]
    by_row = {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in made.rows}
    assert list(by_row) == [1013, 1011, 1010, 1012], "from the lowest raw advantage to the highest"
    assert by_row[1012]["prompt"] == "prompt 2"
    assert by_row[1012]["response"] == NASTY
    assert (by_row[1012]["reward"], by_row[1012]["value"]) == (1.0, 0.4)
    assert by_row[1012]["advantage"] == pytest.approx(1.2)


def test_an_empty_histogram_is_left_out():
    made = samples_of([1.0], [0.5], rho_B=())
    assert set(made.histograms) == {"value", "n_eff", "raw_advantage"}
    assert made.rows == [(1010, "prompt 0", NASTY, 1.0, 0.5, 1.0)]


def test_the_handful_ranges_over_the_advantages():
    raw = np.random.default_rng(0).permutation(np.arange(1000.0))
    assert raw[chosen_sessions(raw)].tolist() == [0.0, 143.0, 285.0, 428.0, 571.0, 714.0, 856.0, 999.0]
    for few in range(1, SAMPLES + 1):
        assert sorted(chosen_sessions(raw[:few])) == list(range(few))


def test_long_texts_keep_both_ends():
    assert shortened("a" * TEXT) == "a" * TEXT
    cut = shortened("begin" + "x" * 10_000 + "end")
    assert cut.startswith("begin")
    assert cut.endswith("end")
    assert f"[... {10_008 - TEXT} characters ...]" in cut
    assert len(cut) < TEXT + 40


def test_markdown_shows_texts_as_they_are():
    text = as_markdown([(7, "p", NASTY, 1.0, 0.4, 1.25)])
    assert text.startswith("**row 7: reward 1, value 0.400, advantage +1.250**")
    assert f"``````\n{NASTY}\n``````" in text, "a fence longer than any run of backticks in the text"


def test_tensorboard_gets_them(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_DIR", str(tmp_path))
    tracking = Tracking("project", "experiment", ["tensorboard", "console"])
    SampleLog(1).show(tracking.logger, made_samples(), 3)
    tracking.finish()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["histograms"]) == {
        f"spo/histogram/{name}" for name in ("value", "n_eff", "raw_advantage", "retention")
    }
    (histogram,) = events.Histograms("spo/histogram/raw_advantage")
    assert histogram.step == 3
    assert (histogram.histogram_value.num, histogram.histogram_value.min) == (4, -0.5)
    (text,) = events.Tensors("spo/samples/text_summary")
    assert text.tensor_proto.string_val[0].decode() == as_markdown(made_samples().rows)


def test_wandb_gets_them(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracking = Tracking("project", "experiment", ["wandb"])
    SampleLog(1).show(tracking.logger, made_samples(), 3)
    tracking.log({"spo/reward/mean": 0.5}, step=3)  # as verl does at the end of the step
    tracking.log({"spo/reward/mean": 0.6}, step=4)  # W&B closes step 3 with the first entry of the next
    summary = dict(wandb.run.summary)
    tracking.finish()
    assert (summary["_step"], summary["spo/reward/mean"]) == (3, 0.5)
    assert sum(summary["spo/histogram/raw_advantage"]["values"]) == 4
    (table,) = tmp_path.rglob("*.table.json")
    written = json.loads(table.read_text())
    assert written["columns"] == list(COLUMNS)
    assert written["data"] == [list(row) for row in made_samples().rows]


def stand_in(monkeypatch, name, **functions):
    module = ModuleType(name)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_mlflow_gets_them(monkeypatch):
    tables, files = {}, {}
    stand_in(
        monkeypatch,
        "mlflow",
        log_table=lambda data, artifact_file: tables.update({artifact_file: data}),
        log_dict=lambda dictionary, artifact_file: files.update({artifact_file: json.loads(json.dumps(dictionary))}),
    )
    SampleLog(1).show({"mlflow": object()}, made_samples(), 3)
    assert list(tables) == ["spo/samples/step_3.json"]
    assert list(tables["spo/samples/step_3.json"]) == list(COLUMNS)
    assert tables["spo/samples/step_3.json"]["row"] == [1013, 1011, 1010, 1012]
    written = files["spo/histogram/step_3.json"]
    assert sum(written["raw_advantage"]["counts"]) == 4
    assert (written["raw_advantage"]["edges"][0], written["raw_advantage"]["edges"][-1]) == pytest.approx((-0.5, 0.6))


def test_trackio_gets_them():
    logged = []
    trackio = SimpleNamespace(
        Histogram=lambda np_histogram: np_histogram,
        Table=lambda columns, data: (columns, data),
        log=lambda data, step: logged.append((step, data)),
    )
    SampleLog(1).show({"trackio": SimpleNamespace(trackio=trackio)}, made_samples(), 3)
    ((step, data),) = logged
    assert step == 3
    assert data["spo/samples"] == (list(COLUMNS), [list(row) for row in made_samples().rows])
    assert data["spo/histogram/value"][0].sum() == 2


def test_when_they_are_due():
    log = SampleLog(10)
    assert [step for step in range(1, 31) if log.due({"wandb": 0}, step)] == [10, 20, 30]
    assert not log.due({"console": 0, "file": 0, "rl_insight": 0}, 10)
    assert not SampleLog(None).due({"wandb": 0}, 10)
    assert SpoConfig().samples_every == 10
    log.show({"console": 0}, made_samples(), 10)
    assert not log.due({"wandb": 0}, 10), "a step of several updates is shown once"


def test_a_backend_that_fails_is_left_out_with_a_warning(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("spo_verl"), "propagate", True)
    shown = []

    def fails(*_):
        raise ConnectionError("no route to host")

    monkeypatch.setitem(BACKENDS, "wandb", fails)
    monkeypatch.setitem(BACKENDS, "mlflow", lambda adapter, samples, step: shown.append(step))
    log, loggers = SampleLog(1), {"wandb": 0, "mlflow": 0}
    log.show(loggers, made_samples(), 1)
    log.show(loggers, made_samples(), 2)
    assert shown == [1, 2]
    records = {id(record): record for record in caplog.records}.values()  # pytest may listen at two loggers of a line
    assert [record.getMessage().split()[1] for record in records] == ["wandb"]
    assert "no route to host" in caplog.text
    assert not log.due({"wandb": 0}, 3)


class Texts:
    """TransferQueue and tokenizer: the tokens of a trajectory are the letters of its key."""

    def kv_batch_get(self, keys, partition_id, select_fields):
        assert (partition_id, select_fields) == ("train", ["prompts", "responses"])
        texts = {"prompts": keys, "responses": [f"answer to {key}" for key in keys]}
        return {
            name: torch.nested.nested_tensor([torch.tensor([*text.encode()]) for text in column], layout=torch.jagged)
            for name, column in texts.items()
        }

    def decode(self, tokens, skip_special_tokens):
        assert skip_special_tokens
        return bytes(tokens.tolist()).decode()


def test_the_trainer_shows_its_steps(monkeypatch):
    """In a simulated run: texts are those of the sessions that the rows name."""
    queue = Texts()
    shown = []
    monkeypatch.setattr(log_probs, "tq", queue)
    monkeypatch.setattr(trainer.SpoTrainer, "tokenizer", queue, raising=False)
    monkeypatch.setattr(SampleLog, "due", lambda self, loggers, step: step % 2 == 0)
    monkeypatch.setattr(SampleLog, "show", lambda self, loggers, samples, step: shown.append((step, samples)))
    spo = read({"forgetting": {"mode": "constant"}})[0]
    world, _ = run(Setting("colocate_async", prompts=60, batch=8, spo=spo, steps=4), somehow())
    assert [step for step, _ in shown] == [2, 4]
    for _, samples in shown:
        assert len(samples.rows) == 8
        assert samples.histograms["value"].shape == (60,)
        assert samples.histograms["retention"].tolist() == [spo.forgetting.rho] * len(samples.histograms["retention"])
        # a key begins with the uid of the dispatch: the text is of the prompt that the row names
        assert [world.slot[row[1].split("_")[0]] for row in samples.rows] == [row[0] for row in samples.rows]
        assert [row[2] for row in samples.rows] == [f"answer to {row[1]}" for row in samples.rows]
        reward, value, advantage = np.array([row[3:] for row in samples.rows]).T
        assert set(reward) <= {0.0, 1.0}
        raw = reward - value  # of the whole batch of eight: normalised over these
        assert advantage == pytest.approx((raw - raw.mean()) / (raw.std(ddof=1) + 1e-8))

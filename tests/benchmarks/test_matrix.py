"""The line that a launch leaves in the matrix, and the table that is made of such lines."""

import json

import pytest

from benchmarks import coverage
from tests.docs.pages import DOCS, table_rows
from tests.support import matrix

MAIN = ["python", "-m", "verl.trainer.main_ppo", "--config-name", "x=y", "+platform=cpu"]
TWO = "trainer.n_gpus_per_node=2"
ROLLOUT_TP = "actor_rollout_ref.rollout.tensor_model_parallel_size=2"


def launch(*overrides, metrics=None, feature="", family="dense", command=MAIN, passed=True):
    return matrix.launch(
        [*command, *overrides],
        metrics or {},
        family=family,
        feature=feature,
        seconds=61.26,
        peak_bytes=3 * 2**29,
        passed=passed,
    )


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["+spo=paper"], ("dp", "sync", 1, "", "spo paper")),
        (["algorithm.adv_estimator=grpo", TWO], ("dp", "sync", 2, "2 replicas", "grpo")),
        (["+spo=bspo", TWO, ROLLOUT_TP], ("dp", "sync", 2, "rollout tp 2", "spo bspo")),
        (
            ["+spo=paper", "trainer.n_gpus_per_node=4", "actor_rollout_ref.actor.ulysses_sequence_parallel_size=2"],
            ("dp", "sync", 4, "sp 2, 4 replicas", "spo paper"),
        ),
        (
            [
                "model_engine=megatron",
                "+spo=paper",
                "trainer.n_gpus_per_node=4",
                "actor_rollout_ref.actor.megatron.tensor_model_parallel_size=2",
                "actor_rollout_ref.actor.megatron.pipeline_model_parallel_size=2",
            ],
            ("megatron", "sync", 4, "tp 2, pp 2, 4 replicas", "spo paper"),
        ),
        (
            ["+spo=paper", "trainer.nnodes=2"],
            ("dp", "sync", 2, "2 replicas, 2 nodes", "spo paper"),
        ),
        (
            ["+spo=paper", TWO, "trainer.v1.trainer_mode=separate_async"],
            ("dp", "separate_async", 2, "2 replicas", "spo paper"),
        ),
        (
            [
                "+spo=paper",
                TWO,
                "trainer.v1.trainer_mode=separate_async",
                "actor_rollout_ref.rollout.n_gpus_per_node=1",
            ],
            ("dp", "separate_async", 2, "", "spo paper"),
        ),
        # The last one counts, as for hydra.
        (["+spo=paper", TWO, "trainer.n_gpus_per_node=1"], ("dp", "sync", 1, "", "spo paper")),
    ],
)
def test_a_combination_is_read_off_the_command(overrides, expected):
    one = launch(*overrides)
    assert (one.engine, one.mode, one.ranks, one.layout, one.feature) == expected


def test_an_estimation_is_a_mode_of_its_own():
    one = launch("actor_rollout_ref.rollout.n=1", command=["python", "-m", "spo_verl.cli", "values", "estimate"])
    assert (one.mode, one.feature, one.log_prob_difference) == ("estimate", "spo", None)


def test_what_a_launch_took_and_the_largest_difference_of_its_steps():
    metrics = {1: {matrix.DIFFERENCE: 2e-6}, 2: {matrix.DIFFERENCE: 7e-6, "x": 1.0}, 3: {}}
    one = launch("+spo=paper", metrics=metrics, feature="LoRA", family="moe")
    assert (one.seconds, one.peak_gib, one.log_prob_difference) == (61.3, 1.5, 7e-6)
    assert (one.family, one.feature) == ("moe", "spo paper, LoRA")


def test_lines_are_appended_to_the_named_file_only(tmp_path, monkeypatch):
    monkeypatch.delenv(matrix.VARIABLE, raising=False)
    assert not matrix.wanted()
    monkeypatch.setenv(matrix.VARIABLE, str(tmp_path / "m.jsonl"))
    assert matrix.wanted()
    for ranks in (1, 2):
        matrix.record(launch("+spo=paper", f"trainer.n_gpus_per_node={ranks}"))
    lines = (tmp_path / "m.jsonl").read_text().splitlines()
    assert [json.loads(line)["ranks"] for line in lines] == [1, 2]
    assert set(json.loads(lines[0])) == {
        *coverage.COMBINATION, "seconds", "peak_gib", "log_prob_difference", "passed",
    }  # fmt: skip


def test_launches_fill_their_rows_and_leave_the_others(tmp_path, monkeypatch):
    monkeypatch.setenv(matrix.VARIABLE, str(tmp_path / "m.jsonl"))
    matrix.record(launch("+spo=paper", TWO))
    matrix.record(launch("+spo=paper", TWO, metrics={1: {matrix.DIFFERENCE: 3.4e-6}}))  # the later one counts
    matrix.record(launch("+spo=paper", "model_engine=megatron", passed=False))
    kept = "| dp | separate_async | 1 |  | dense | spo paper | 5 | 1.0 | 1e-8 |\n"
    former = "| dp | sync | 2 | 2 replicas | dense | spo paper | 9 | 9.0 | 9e-9 |\n"
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{coverage.HEADER}\nbetween\n\n{coverage.MATRIX_HEADER}{kept}{former}\nafter\n")
    coverage.main(["--matrix", str(tmp_path / "m.jsonl")], page)
    assert page.read_text().endswith(
        f"between\n\n{coverage.MATRIX_HEADER}"
        "| dp | sync | 2 | 2 replicas | dense | spo paper | 61 | 1.5 | 3e-6 |\n"
        f"{kept}"
        "| megatron | sync | 1 |  | dense | spo paper | 61 | 1.5 | failed |\n"
        "\nafter\n"
    )
    once = page.read_text()
    coverage.main(["--matrix", str(tmp_path / "m.jsonl")], page)
    assert page.read_text() == once


def test_the_page_is_what_the_command_writes():
    page = (DOCS / "coverage.md").read_text()
    assert coverage.with_launches(page, {}) == page
    for row in table_rows(page, *coverage.COMBINATION, "s", "GiB", "log-prob difference"):
        assert row[0] in ("dp", "megatron")
        assert row[-1] != coverage.FAILED, row


def test_a_page_without_the_table_is_an_error():
    with pytest.raises(ValueError, match="engine"):
        coverage.with_launches("text", {})

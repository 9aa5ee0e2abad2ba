"""``spo-verl rehearse``: what it prints and how it ends; the rehearsals themselves are in tests/recipes."""

import pytest

from spo_verl.cli.rehearse import verdict
from spo_verl.rehearsal import rehearse as module
from spo_verl.rehearsal.reduction import Change
from spo_verl.rehearsal.rehearse import Rehearsal
from spo_verl.rehearsal.verdict import Check
from tests.cli.helpers import run, run_json
from tests.recipes.helpers import ROOT, sums, write

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def root(monkeypatch):
    monkeypatch.setenv("SPO_RECIPES_DIR", str(ROOT))


@pytest.fixture
def rows(tmp_path):
    return write(sums(80), tmp_path / "rows.parquet")


def made(**more):
    return Rehearsal("a/b", "training", "fsdp2", "sync", "cpu", "here", seconds=90.0, peak_gib=6.0, **more)


def test_a_launch_that_is_not_possible_is_no_success(tmp_path, rows, monkeypatch):
    monkeypatch.setattr(module, "_importable", lambda name: name != "megatron.core")
    arguments = ("rehearse", "async/separate_async", "model_engine=megatron", "--data", rows, "-o", tmp_path / "out")
    result = run(*arguments)
    assert result.exit_code == 1
    assert "    data.train_batch_size   2048 -> 16" in result.stdout
    assert (
        "NOT REHEARSED: async/separate_async (megatron, separate_async, training) got as far as: composed, "
        in result.stdout
    )
    assert "megatron-core is not installed" in result.stdout


def test_json_is_the_whole_of_stdout(tmp_path, rows, monkeypatch):
    monkeypatch.setattr(module, "_importable", lambda name: name != "megatron.core")
    found = run_json(
        "rehearse", "gsm8k_qwen3_0_6b/spo", "model_engine=megatron", "--data", rows, "-o", tmp_path / "out"
    )
    assert (found["passed"], found["recipe"], found["mode"]) == (False, "gsm8k_qwen3_0_6b/spo", "sync")
    assert {"key", "recipe", "rehearsal", "why", "group"} == set(found["changes"][0])


def test_errors_come_without_a_traceback():
    result = run("rehearse", "gsm8k_qwen3_0_6b/nothing")
    assert result.exit_code == 2
    assert "there are: ablations/" in result.output
    result = run("rehearse", "gsm8k_qwen3_0_6b/spo", "data.foo=1", "data_dir=/nowhere")
    assert result.exit_code == 2
    assert "data.foo=1" in result.output


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            made(checks=[Check("steps", True, "2 of 2")]),
            "REHEARSED: a/b (fsdp2, sync, training) in 90 s, at most 6.0 GiB",
        ),
        (made(checks=[Check("steps", True, ""), Check("tool calls", False, "")]), "at most 6.0 GiB: tool calls"),
        (
            made(stages=[Check("composed", True, "")], stopped="verl's run ended"),
            "as far as: composed. Why it stops: verl",
        ),
        (made(checks=[]), "FAILED: a/b"),
        (made(checks=[Check("steps", True, "")], ranks=4, tp=2), "a/b (fsdp2, sync, 4 ranks, tp 2, training) in 90 s"),
    ],
)
def test_the_last_sentence(found, said):
    assert said in verdict(found)


def test_changes_stand_under_their_reason(capsys):
    from rich.console import Console

    from spo_verl.cli.rehearse import _show

    one, two = Change("a.b", 1, 2, "small"), Change("c", None, "x" * 99, "small")
    _show(Console(width=200), made(changes=[one, two], checks=[Check("steps", True, "2 of 2")]))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == ["Different from the recipe:", "  small", "    a.b   1 -> 2"]
    assert lines[3] == f"    c   None -> ...{'x' * 57}"


def test_numbers_of_processes_are_refused_before_anything_is_made(tmp_path, rows, monkeypatch):
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    arguments = ("rehearse", "gsm8k_qwen3_0_6b/spo", "--data", rows, "-o", tmp_path / "out")
    for more, said in (
        (("--ranks", "3"), "set --ranks to one of 1, 2, 4, 8"),
        (("--ranks", "2", "--device", "gpu"), "this machine has 0 accelerators"),
    ):
        result = run(*arguments, *more)
        assert result.exit_code == 2
        assert said in " ".join(result.output.split())
        assert not (tmp_path / "out").exists()
    assert run(*arguments, "--ranks", "0").exit_code == 2


def test_accelerators_are_used_where_there_are_some(tmp_path, rows, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "rehearse", lambda *_, **given: seen.append(given) or made(checks=[]))
    for there, more, device in ((8, (), "gpu"), (0, (), "cpu"), (8, ("--device", "cpu"), "cpu")):
        monkeypatch.setattr(module, "accelerators", lambda there=there: there)
        run("rehearse", "gsm8k_qwen3_0_6b/spo", "--data", rows, "-o", tmp_path / "out", "--ranks", "2", *more)
        assert (seen[-1]["device"], seen[-1]["split"].ranks) == (device, 2)
        assert (seen[-1]["limits"].seconds, seen[-1]["limits"].memory_gib) == (600, 16)

"""The patches in ``patches/upstream`` fit the installed verl, are complete, and do what their pages say."""

from __future__ import annotations

import json
import os
import py_compile
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.patches.applying import FOLDER, SERIES, VERL, apply, contents, copy_touched, touched

pytestmark = pytest.mark.long

HEADINGS = ["Problem", "Change", "Test", "Related"]
"""The last one only where an issue or a pull request was found."""
PAGES = {patch: (FOLDER / patch).with_suffix(".md") for patch in SERIES}


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The touched files with all patches applied, in the order of the series."""
    root = tmp_path_factory.mktemp("together")
    copy_touched(root, SERIES)
    for patch in SERIES:
        apply(root, patch)
    return root


# The patches as files


@pytest.mark.parametrize("patch", SERIES)
def test_a_patch_applies_alone_exactly_where_it_says(patch: str, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    root.mkdir()
    copy_touched(root, [patch])
    before = contents(root)
    said = apply(root, patch)
    assert "offset" not in said
    assert "fuzz" not in said
    after = contents(root)
    changed, created = touched(patch)
    assert {name for name in after if after[name] != before.get(name)} == changed | created
    for name in sorted(changed | created):
        if name.endswith(".py"):
            py_compile.compile(str(root / name), doraise=True, cfile=str(tmp_path / "compiled"))
    apply(root, patch, "--reverse")
    assert contents(root) == before


@pytest.mark.skipif(
    shutil.which("patch") is None, reason="the program `patch` is not installed; git applied them above"
)
@pytest.mark.parametrize("patch", SERIES)
def test_a_patch_applies_with_the_program_patch(patch: str, tmp_path: Path) -> None:
    copy_touched(tmp_path, [patch])
    arguments = ["patch", "-p1", "--fuzz=0", "--batch", "--input", str(FOLDER / patch)]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "offset" not in done.stdout
    assert list(tmp_path.rglob("*.rej")) == []


def test_the_order_does_not_matter(together: Path, tmp_path: Path) -> None:
    copy_touched(tmp_path, SERIES)
    for patch in reversed(SERIES):
        apply(tmp_path, patch)
    assert contents(tmp_path) == contents(together)


def test_all_patched_files_compile_and_have_the_style_of_verl(together: Path, tmp_path: Path) -> None:
    files = sorted(together.rglob("*.py"))
    assert len(files) >= 16
    for number, file in enumerate(files):
        py_compile.compile(str(file), doraise=True, cfile=str(tmp_path / f"{number}.pyc"))
    ruff = [sys.executable, "-m", "ruff"]
    for verb in (
        ["format", "--check"],
        ["check", "--select", "F,I", "--config", 'lint.isort.known-first-party=["verl"]'],
    ):
        command = [*ruff, *verb, "--isolated", "--no-cache", "--line-length", "120", *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_patch_has_a_page_and_the_other_way_round() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.patch")) == sorted(SERIES)
    assert sorted(FOLDER.glob("*.md")) == sorted(PAGES.values())
    readme = (FOLDER.parent / "README.md").read_text().partition("\n## Workarounds\n")[0]
    linked = re.findall(r"\]\(upstream/([\w-]+)\.md\)", readme)
    assert linked == [Path(patch).stem for patch in SERIES]


@pytest.mark.parametrize("patch", SERIES)
def test_a_page_is_the_text_of_a_pull_request(patch: str) -> None:
    text = PAGES[patch].read_text()
    assert re.match(r"# \[[a-z_]+(, [a-z_]+)*\] (feat|fix|refactor|chore|test): \w", text)
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    assert parts[1::2] in (HEADINGS, HEADINGS[:-1])
    assert all(len(body.strip()) >= 40 for body in parts[2::2])
    body = dict(zip(parts[1::2], parts[2::2], strict=True))
    quoted = re.findall(r"`(verl/[\w/.]+):(\d+)`\s+\(`(.+?)`\)", text)
    assert len(quoted) == len(re.findall(r"`verl/[\w/.]+:\d+`", text)), "a line number without the line"
    assert re.search(r"`verl/[\w/.]+:\d+`", body["Problem"])
    for name, line, snippet in quoted:
        assert snippet in (VERL.parent / name).read_text().splitlines()[int(line) - 1], f"{name}:{line}"


# What the patched code does, next to what verl 0.9.1 does

Reports = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def reports(together: Path, tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """The probe's report on the installed verl and on the patched one; both run at the same time."""
    out = tmp_path_factory.mktemp("reports")
    environment = {
        **{
            name: value
            for name, value in os.environ.items()
            if name not in ("VERL_PLATFORM", "RAY_ADDRESS", "PROBE_OVERLAY")
        },
        "VERL_USE_EXTERNAL_PLUGINS": "none",
        "TORCHDYNAMO_DISABLE": "1",
    }
    running = []
    for name, overlay in (("stock", {}), ("patched", {"PROBE_OVERLAY": str(together)})):
        log = (out / f"{name}.log").open("w")
        command = [sys.executable, "-m", "tests.patches.probe", str(out / f"{name}.json")]
        running.append(
            subprocess.Popen(command, cwd=FOLDER.parents[1], env={**environment, **overlay}, stdout=log, stderr=log)
        )
    try:
        codes = [process.wait(timeout=1100) for process in running]
    finally:
        for process in running:
            process.kill()
    for name, code in zip(("stock", "patched"), codes, strict=True):
        assert code == 0, (out / f"{name}.log").read_text()[-4000:]
    stock, patched = (json.loads((out / f"{name}.json").read_text()) for name in ("stock", "patched"))
    return stock, patched


def test_reference_configs_are_what_the_script_of_verl_generates(reports: Reports) -> None:
    for report in reports:
        assert len(report["generated configs"]) == 4
        assert all(report["generated configs"].values()), report["generated configs"]


def test_an_estimator_receives_what_it_names(reports: Reports) -> None:
    stock, patched = (report["estimators"] for report in reports)
    assert [stock[name] for name in ("batch", "non_tensor_batch", "batch_keys")] == [None, None, None]
    assert patched["batch"] == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    assert patched["non_tensor_batch"] == ["x", "y", "z"]
    assert patched["batch_keys"] == ["a_0_0", "a_1_0", "b_0_0"]
    assert patched["batch_keys without TransferQueue"] is None
    assert stock["plain"] == patched["plain"] == ["config", "index"]  # **kwargs alone asks for nothing
    assert stock["gdpo"] == patched["gdpo"]
    assert len({row[0] for row in patched["gdpo"]}) == 3


def test_a_curriculum_sampler_is_loaded_updated_and_saved(reports: Reports) -> None:
    stock, patched = (report["curriculum"] for report in reports)
    assert "Could not override" in stock["setting"]
    assert stock["added"] == "RandomSampler"  # +data.sampler... is accepted, and ignored
    assert patched["setting"] == "OneByOne"
    assert patched["saw the data section"] == "own"
    # Each batch is the row after the previous batch: an update that comes late, or a prefetch, would repeat one.
    assert patched["rows"] == [[0] * 4, [1] * 4, [2] * 4, [3] * 4]
    assert patched["rows after a resume"] == [3] * 4  # saved at step 3, after the update by [2] * 4
    assert "requires data.dataloader_num_workers=0" in patched["workers"]
    assert patched["other class"].startswith("TypeError: The sampler class 'NotASampler'")
    for report in (stock, patched):
        assert (report["default"], report["in order"]) == ("RandomSampler", "SequentialSampler")
    assert patched["no such section"] == "SequentialSampler"


def test_the_poll_interval_is_a_setting(reports: Reports) -> None:
    stock, patched = (report["poll interval"] for report in reports)
    assert all("Could not override" in said for said in stock["set"])
    assert patched["set"] == [0.25, 0.25]
    assert patched["custom, set"] == 0.25
    assert patched["zero"] == "ValueError: poll_interval must be greater than 0 seconds, got 0"
    for report in (stock, patched):
        assert report["default"] == [2.0, 2.0]
        assert report["custom, default"] == [2.0, 9.0]


def test_the_last_step_saves_and_validates_whichever_limit_comes_first(reports: Reports) -> None:
    stock, patched = (report["loop"] for report in reports)
    steps = [["step", number] for number in range(1, 7)]  # 12 prompts / batch of 4 * 2 epochs = 6 steps
    assert stock["by epochs"] == [*steps, ["end"], ["shutdown"]]  # total_training_steps=10: nothing saved
    assert patched["by epochs"] == [*steps, ["save", 6], ["validate", 6], ["end"], ["shutdown"]]
    assert patched["unset"] == patched["by epochs"]
    assert patched["by steps"] == [*steps[:2], ["save", 2], ["validate", 2], ["end"], ["shutdown"]]
    for case in ("unset", "by steps"):  # the only difference there is on_train_end, which 0.9.1 leaves out
        assert stock[case] == [event for event in patched[case] if event != ["end"]]
    # (steps of the loop, horizon of the learning rate): the horizon stays what it was
    assert stock["horizon"] == {"10": [10, 10], "2": [2, 2], "null": [6, 6]}
    assert patched["horizon"] == {"10": [6, 10], "2": [2, 2], "null": [6, 6]}


def test_fewer_prompts_than_a_batch_are_refused_before_anything_starts(reports: Reports) -> None:
    stock, patched = (report["loop"] for report in reports)
    assert stock["too few prompts"] == 0  # steps per epoch; the division comes minutes later, in fit()
    assert stock["too few prompts, in fit"].startswith("ZeroDivisionError")
    assert patched["too few prompts"] == (
        "ValueError: The train dataset has 3 prompts, fewer than one batch: data.train_batch_size=4"
    )
    for report in (stock, patched):
        assert report["too few prompts, validation only"] == [["validate", 0], ["shutdown"]]


def test_a_full_disk_leaves_the_previous_marker(reports: Reports) -> None:
    stock, patched = (report["marker"] for report in reports)
    for report in (stock, patched):
        assert (report["first"], report["after the first"]) == (None, "10")
        assert report["second"] == "OSError: [Errno 27] File too large"
        assert (report["third"], report["after the third"]) == (None, "30")
        assert report["left over"] == ["latest_checkpointed_iteration.txt"]
    assert stock["after the second"] == ""
    assert stock["resume"].startswith("ValueError: invalid literal for int()")
    assert patched["after the second"] == "10"
    assert patched["resume"] == "global_step_10"


def test_no_writer_of_the_marker_truncates_it(together: Path) -> None:
    truncating = 'open(local_latest_checkpointed_iteration, "w")'
    stock = {str(file.relative_to(VERL.parent)) for file in VERL.rglob("*.py") if truncating in file.read_text()}
    assert len(stock) == 4
    assert stock <= touched("atomic-checkpoint-marker.patch")[0]
    assert [name for name in sorted(stock) if truncating in (together / name).read_text()] == []


def test_sockets_of_two_local_clusters_differ(reports: Reports) -> None:
    stock, patched = (report["sockets"]["clusters"] for report in reports)
    for cluster in (*stock, *patched):
        sender, receiver = cluster["names"]
        assert sender == receiver
        assert len(sender.removeprefix("ipc://")) <= 107
        assert cluster["elsewhere on the node"][0] == "01000000"
    assert stock[0]["names"] == stock[1]["names"]
    assert patched[0]["names"] != patched[1]["names"]
    for cluster in patched:
        job, node = cluster["elsewhere on the node"]
        assert f"rl-colocate-zmq-{job}-{node[:12]}-replica-1-rank-0.sock" in cluster["names"][0]


def test_nothing_reads_the_old_name_of_the_environment_variable(together: Path) -> None:
    stock = {str(file.relative_to(VERL.parent)) for file in VERL.rglob("*.py") if "VERL_RAY_JOB_ID" in file.read_text()}
    assert len(stock) == 3
    assert [name for name in sorted(stock) if "VERL_RAY_JOB_ID" in (together / name).read_text()] == []


def test_the_saved_policy_is_a_copy(reports: Reports) -> None:
    stock, patched = (report["old policy"] for report in reports)
    assert stock["live"] == stock["saved"] == stock["restored"] == [11.0, 12.0, 13.0]
    assert patched["live"] == [11.0, 12.0, 13.0]
    assert patched["saved"] == patched["restored"] == [1.0, 2.0, 3.0]


def test_weights_without_a_flat_buffer_are_moved(reports: Reports) -> None:
    stock, patched = (report["parameters"] for report in reports)
    for verb in ("load", "offload", "copy"):
        assert stock[verb] == "AttributeError: 'NoneType' object has no attribute 'storage'"
    assert (patched["load"], patched["offload"], patched["copy"]) == ("device 0", "cpu", [1.0, 2.0])
    assert stock["copy of a flat buffer"] == patched["copy of a flat buffer"] == [1.0, 2.0]


def test_the_bridge_gets_the_rotary_base(reports: Reports) -> None:
    stock, patched = (report["rotary base"] for report in reports)
    assert (stock.pop("moved"), patched.pop("moved")) == ({}, {"rotary_base": 1e6})
    assert stock == patched
    assert patched.pop("overridden") == {"rotary_base": 7.0}
    assert list(patched.values()) == [{}] * 4


def test_the_last_output_is_scored_whole(reports: Reports) -> None:
    stock, patched = (report["scored texts"] for report in reports)
    assert stock == {"last is shorter": [""], "last is longest": ["hia"], "one output": ["de"]}
    assert patched == {"last is shorter": ["ij"], "last is longest": ["hi"], "one output": ["de"]}


def test_loggers_are_called_as_loggers(reports: Reports) -> None:
    stock, patched = (report["log lines"] for report in reports)
    assert sorted(stock["calls"]) == sorted(touched("logger-flush.patch")[0])
    assert stock["result"].startswith("TypeError: Logger._log() got an unexpected keyword argument 'flush'")
    assert patched["calls"] == []
    assert patched["result"] is None
    assert patched["line"].strip().endswith("rollout served by 2 standalone replicas only")


def test_a_process_group_starts_on_a_cpu(reports: Reports) -> None:
    stock, patched = (report["process group"] for report in reports)
    assert "Duplicate device type cpu" in stock["cpu"]
    assert patched["cpu"] == "sum 2.0"
    assert stock["cuda"] == patched["cuda"] == "cpu:gloo,cuda:nccl"

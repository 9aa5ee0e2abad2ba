"""``spo-verl doctor``: one real look at this machine, and every judgement on answers made by hand."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from spo_verl.cli import doctor
from spo_verl.cli.health import contained, devices, machine, probe, processes, recipe_needs, software, verl_side
from spo_verl.cli.health.findings import Finding
from spo_verl.cli.health.processes import Answers
from tests.cli.helpers import run

pytestmark = pytest.mark.long

VERL = {"version": "0.9.1", "path": "/site/verl", "device": "cuda", "available": True, "plugin": True}
GOOD = Answers(
    {
        "verl_import": VERL,
        "estimator": "spo_verl.training.estimator.spo_advantage",
        "groups": {"spo": ["bspo", "paper"], "platform": []},
        "seams": {"count": 2, "mismatches": []},
        "workarounds": None,
    },
    {},
)


def with_value(**changed):
    return Answers({**GOOD.values, **changed}, {})


def with_error(question, error, *remarks):
    return Answers({key: value for key, value in GOOD.values.items() if key != question}, {question: error}, remarks)


def statuses(findings):
    return {finding.name: finding.status for finding in findings}


@pytest.fixture(scope="module")
def report():
    """The whole verb in this environment, on the CPU platform and with a Ray cluster that is not there."""
    environment = {**os.environ, "VERL_PLATFORM": "cpu", "RAY_ADDRESS": "127.0.0.1:1"}
    environment.pop("VERL_USE_EXTERNAL_PLUGINS", None)
    done = subprocess.run(
        [sys.executable, "-m", "spo_verl.cli", "doctor", "--json", "--time-limit", "400"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    return SimpleNamespace(status=done.returncode, **json.loads(done.stdout))


def test_only_the_absent_cluster_fails_here(report):
    failed = [check for check in report.checks if check["status"] == "fail"]
    assert [check["name"] for check in failed] == ["cluster"]
    assert "Connection refused" in failed[0]["found"]
    assert "unset RAY_ADDRESS" in failed[0]["fix"]
    assert report.status == 1
    assert report.ok is False
    assert report.counts["fail"] == 1


def test_it_sees_plugin_seams_workarounds_and_devices(report):
    found = {check["name"]: check["found"] for check in report.checks if check["status"] == "ok"}
    assert found["estimator spo"] == "registered: spo_verl.training.estimator.spo_advantage"
    assert "+spo=paper" in found["presets"]
    assert found["verl's names"].startswith("all ")
    assert found["verl's platform"] == "cpu (VERL_PLATFORM=cpu)"
    assert found["vLLM"].endswith("device cpu")
    assert "unique-sockets" in found["workarounds"]
    assert {"python", "verl", "torch", "ray", "transformers", "spo_verl"} <= found.keys()


def test_every_line_that_is_not_ok_says_what_to_do(report):
    assert [check["name"] for check in report.checks if check["status"] != "ok" and not check["fix"]] == []


def test_a_reader_sees_the_marks_the_fixes_and_the_count(monkeypatch):
    findings = [
        Finding("group", "torch", "ok", "2.13"),
        Finding("group", "estimator spo", "fail", "[not] there", "pip install -e ."),
    ]
    monkeypatch.setattr(doctor, "examine", lambda time_limit_s: iter(findings))
    result = run("doctor")
    assert result.exit_code == 1
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["group", "ok", "torch", "2.13"] in lines
    assert ["FAIL", "estimator", "spo", "[not]", "there"] in lines
    assert ["->", "pip", "install", "-e", "."] in lines
    assert result.stdout.rstrip().endswith("1 ok, 0 to look at, 1 failed")
    monkeypatch.setattr(doctor, "examine", lambda time_limit_s: iter(findings[:1]))
    assert run("doctor").exit_code == 0


# ---------------------------------------------------------------- the processes that look


@pytest.fixture
def stand_in(monkeypatch):
    def start(behaviour, time_limit_s):
        monkeypatch.setenv("SPO_TEST_PROBE", behaviour)
        return processes.run_probe("devices", time_limit_s, module="tests.cli.probe_stand_in")

    monkeypatch.chdir(Path(__file__).parents[2])
    return start


def still_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_a_hanging_import_is_ended_and_keeps_what_was_answered_before(stand_in, capfd):
    began = time.monotonic()
    answers = stand_in("hang", 4.0)
    assert time.monotonic() - began < 60
    assert answers.values == {"torch_device": {"cuda": False}}
    assert answers.errors["vllm_device"].startswith("the process that looked did not answer within 4 s")
    assert answers.remarks == ("spo_verl: loading the plugin failed",)
    left = int(re.search(r"pid (\d+)", answers.errors["vllm_device"]).group(1))
    deadline = time.monotonic() + 20  # a killed process may take a moment to go
    while still_running(left) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not still_running(left)


def test_a_crash_is_told_with_its_last_words(stand_in):
    error = stand_in("crash", 60.0).errors["vllm_device"]
    assert error == "the process that looked ended with exit status -6 (fatal: no such instruction)"


def test_an_import_that_exits_is_an_answer():
    def leave():
        raise SystemExit("no accelerator")

    assert probe.answer(leave) == {"question": "leave", "error": "SystemExit: no accelerator"}


# ---------------------------------------------------------------- judging plugin and verl


def test_a_good_plugin():
    assert set(statuses(verl_side.plugin_findings(GOOD)).values()) == {"ok"}
    assert statuses(verl_side.seam_findings(GOOD)) == {"verl's names": "ok"}
    [inactive] = verl_side.workaround_findings(GOOD)
    assert inactive.status == "ok"
    assert "inactive" in inactive.found


def test_a_plugin_that_was_not_loaded():
    findings = {f.name: f for f in verl_side.plugin_findings(with_value(estimator=None, groups={"spo": []}))}
    assert findings["estimator spo"].status == findings["presets"].status == "fail"
    assert "pip install -e ." in findings["estimator spo"].fix


def test_what_the_plugin_said_is_the_fix():
    remark = "spo_verl: loading the plugin failed (No module named wrapt)"
    answers = Answers({**GOOD.values, "estimator": None}, {}, (remark,))
    findings = {f.name: f for f in verl_side.plugin_findings(answers)}
    assert findings["estimator spo"].fix == remark


def test_a_verl_that_cannot_be_imported_is_one_failure():
    [finding] = verl_side.plugin_findings(with_error("verl_import", "ImportError: no ray"))
    assert (finding.status, finding.found) == ("fail", "ImportError: no ray")


def test_moved_seams_are_listed_one_by_one():
    moved = ["a:b is gone", "c:d is (self), expected (self, x)"]
    findings = list(verl_side.seam_findings(with_value(seams={"count": 9, "mismatches": moved})))
    assert [(f.status, f.found) for f in findings] == [("fail", moved[0]), ("fail", moved[1])]
    assert "pip install verl==0.9.1" in findings[0].fix


def test_a_workaround_that_does_not_fit():
    found = {"names": ["a", "b"], "problems": ["b: vllm has no x"]}
    [finding] = verl_side.workaround_findings(with_value(workarounds=found))
    assert (finding.status, finding.found) == ("fail", "b: vllm has no x")
    [finding] = verl_side.workaround_findings(with_value(workarounds={**found, "problems": []}))
    assert (finding.status, finding.found) == ("ok", "2 active: a, b")


@pytest.mark.parametrize(
    ("policy", "status"),
    [(None, "ok"), ("auto", "ok"), (" AUTO ", "ok"), ("other, spo", "ok"), ("none", "fail"), ("other", "fail")],
)
def test_the_plugin_policy_of_verl(policy, status):
    finding = verl_side.policy_finding({} if policy is None else {"VERL_USE_EXTERNAL_PLUGINS": policy})
    assert finding.status == status
    assert bool(finding.fix) == (status == "fail")


def test_the_entry_point_is_found_or_its_absence_told(monkeypatch):
    assert verl_side.entry_point_finding().status == "ok"
    monkeypatch.setattr(verl_side, "entry_points", lambda group: [])
    assert verl_side.entry_point_finding().status == "fail"


# ---------------------------------------------------------------- judging devices and Ray


def device_answers(torch_cuda, vllm):
    torch = {"version": "2", "cuda": torch_cuda, "devices": ["H200", "H200", "A10"] if torch_cuda else []}
    return Answers({"torch_device": torch, "vllm_device": {"version": "1", "device": vllm}}, {})


@pytest.mark.parametrize(
    ("platform", "available", "cuda", "vllm", "expected"),
    [
        ("", True, True, "cuda", ("ok", "ok", "ok")),
        ("cpu", True, False, "cpu", ("ok", "ok", "ok")),
        ("cpu", True, True, "cuda", ("ok", "ok", "fail")),
        ("", False, False, "cpu", ("warn", "warn", "warn")),
        ("", False, False, "", ("warn", "warn", "warn")),
    ],
)
def test_platform_torch_and_vllm_have_to_agree(platform, available, cuda, vllm, expected):
    verl = with_value(verl_import={**VERL, "available": available})
    environ = {"VERL_PLATFORM": platform} if platform else {}
    findings = [*devices.verl_findings(verl, environ), *devices.device_findings(device_answers(cuda, vllm), environ)]
    assert tuple(finding.status for finding in findings) == expected
    assert all(finding.fix for finding in findings if finding.status != "ok")


def test_accelerators_are_counted_by_kind():
    torch = next(devices.device_findings(device_answers(True, "cuda"), {}))
    assert torch.found == "2, CUDA available: 2 x H200, 1 x A10"


def test_a_missing_vllm_is_a_warning_and_a_broken_one_a_failure():
    for error, status in (("ModuleNotFoundError: No module named 'vllm'", "warn"), ("OSError: libcuda", "fail")):
        answers = Answers({"torch_device": device_answers(True, "").values["torch_device"]}, {"vllm_device": error})
        assert statuses(devices.device_findings(answers, {}))["vLLM"] == status


def test_ray_is_reached_only_where_an_address_is_set():
    alone = Answers({"ray_cluster": {"version": "2", "address": ""}}, {})
    assert statuses(devices.ray_findings(alone, {})) == {"import ray": "ok", "cluster": "ok"}
    cluster = {"version": "2", "address": "head:6379", "nodes": 2, "resources": {"CPU": 64.0, "GPU": 16.0}}
    environ = {"RAY_ADDRESS": "head:6379"}
    *_, reached = devices.ray_findings(Answers({"ray_cluster": cluster}, {}), environ)
    assert reached.found == "head:6379 answers: 2 nodes, 64 CPU, 16 GPU"
    [lost] = devices.ray_findings(Answers({}, {"ray_cluster": "ConnectionRefusedError"}), environ)
    assert (lost.name, lost.status) == ("cluster", "fail")
    assert lost.fix.startswith("start a cluster")
    error = "AuthenticationError: RPC error: InvalidAuthToken: Authentication token is missing or incorrect."
    [refused] = devices.ray_findings(Answers({}, {"ray_cluster": error}), environ)
    assert "RAY_AUTH_MODE=token" in refused.fix
    [missing] = devices.ray_findings(Answers({}, {"ray_cluster": "ModuleNotFoundError"}), {})
    assert (missing.name, missing.status) == ("import ray", "fail")


# ---------------------------------------------------------------- judging versions and the machine


def test_versions_are_held_against_what_is_declared(monkeypatch):
    installed = {"verl": "0.9.1", "transformers": "4.0.0", "ray": "2.60.0"}
    monkeypatch.setattr(software, "installed_version", installed.get)
    assert software.package_finding("verl").status == "ok"
    assert software.package_finding("ray").status == "ok"
    old = software.package_finding("transformers")  # verl 0.9.1 asks for 5.5.3 or newer
    assert old.status == "fail"
    assert "verl needs" in old.found
    assert old.fix.startswith("pip install 'transformers")
    assert software.package_finding("torch").status == "fail"
    assert software.package_finding("vllm").status == "warn"
    installed["verl"] = "0.9.7"
    assert software.package_finding("verl").status == "warn"
    installed["verl"] = "0.8.0"
    assert software.package_finding("verl").status == "fail"


def usage(free):
    return lambda folder: SimpleNamespace(free=free, total=100e9, used=0)


@pytest.mark.parametrize(("free", "status"), [(0.5e9, "fail"), (5e9, "warn"), (50e9, "ok")])
def test_disk(monkeypatch, tmp_path, free, status):
    monkeypatch.setattr(machine.shutil, "disk_usage", usage(free))
    finding = machine.disk_finding("disk", tmp_path, "make room")
    assert finding.status == status
    assert finding.fix == ("" if status == "ok" else "make room")


def test_shared_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(machine.shutil, "disk_usage", usage(64e6))  # what docker gives by default
    (tmp_path / "psm_1").write_bytes(b"x" * 3_000_000)
    finding = machine.shared_memory_finding(tmp_path)
    assert finding.status == "warn"
    assert "1 segments psm_*" in finding.found
    assert "3 MB" in finding.found
    assert "--shm-size" in finding.fix
    monkeypatch.setattr(machine.shutil, "disk_usage", usage(8e9))
    assert machine.shared_memory_finding(tmp_path).status == "ok"
    assert machine.shared_memory_finding(tmp_path / "no").status == "warn"


def test_memory_is_what_the_container_leaves(monkeypatch, tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 64000000 kB\nMemAvailable:   32000000 kB\n")
    limit, used, statistics = tmp_path / "max", tmp_path / "current", tmp_path / "stat"
    monkeypatch.setattr(machine, "_CGROUP_LIMITS", ((str(limit), str(used), str(statistics)),))
    assert machine.available_memory(meminfo) == 32_000_000 * 1024
    # 10 GB allowed, 4 GB used, of which 1 GB are unused file pages: 7 GB are left
    limit.write_text("10000000000\n")
    used.write_text("4000000000\n")
    statistics.write_text("anon 3000000000\ninactive_file 1000000000\n")
    assert machine.available_memory(meminfo) == 7_000_000_000
    limit.write_text("max\n")
    assert machine.available_memory(meminfo) == 32_000_000 * 1024
    assert machine.available_memory(tmp_path / "absent") is None
    assert [machine.memory_finding(n).status for n in (None, 7_000_000_000, 9_000_000_000)] == ["warn", "warn", "ok"]


# ---------------------------------------------------------------------- the embedded interpreter


def answer(**limits: bool) -> str:
    return json.dumps({"limits": limits, "folder": False, "namespaces": False, "landlock": 3, "seccomp": True})


@pytest.mark.parametrize(
    ("out", "log", "status", "words"),
    [
        (answer(memory=True, no_network=True), "", "ok", "holds all limits; programs without a folder"),
        (answer(memory=True, no_network=False), "", "warn", "does not hold programs to: no_network"),
        ("", "Traceback\nOSError: no seccomp\n", "warn", "does not start: OSError: no seccomp"),
    ],
)
def test_what_the_embedded_interpreter_says_of_itself(out, log, status, words):
    finding = contained.read_answer(out, log)
    assert (finding.status, words in finding.found) == (status, True)
    assert ("sandbox_fusion" in finding.fix) == (status != "ok")


def test_the_machine_is_asked():
    finding = contained.interpreter_finding(60.0)
    assert finding.name == "embedded interpreter"
    assert "holds" in finding.found
    assert "did not answer" in contained.interpreter_finding(0.01).found


# ---------------------------------------------------------------- without verl, and what recipes need

REWARD = {"right": 1.0, "wrong": 0.0, "version": "0.9.0"}


def test_without_verl_the_report_is_a_page(monkeypatch):
    """Nothing is asked of verl, and what it would bring is one line."""
    asked = []
    absent = "ModuleNotFoundError: No module named 'x'"

    def answer(names, time_limit_s):
        asked.extend(names)
        return {name: Answers({}, {question.__name__: absent for question in probe.PROBES[name]}) for name in names}

    for module in (software, recipe_needs):
        monkeypatch.setattr(module, "installed_version", lambda package: None)
    monkeypatch.setattr(recipe_needs.recipe_findings, "__defaults__", (lambda package: None,))
    monkeypatch.setattr(processes, "ask", answer)
    monkeypatch.setattr(contained, "interpreter_finding", lambda limit: Finding("machine", "interpreter", "ok", ""))
    monkeypatch.setattr(verl_side, "entry_points", lambda group: [])
    result = run("doctor")
    assert result.exit_code == 1
    assert "verl" not in asked
    assert len(result.stdout.splitlines()) < 50
    assert "not installed: torch, verl, ray, transformers" in " ".join(result.stdout.split())
    assert "pip install verl==0.9.1" in result.stdout
    assert int(re.search(r"(\d+) failed", result.stdout).group(1)) <= 8


def test_a_verl_that_cannot_be_imported_does_not_list_its_names():
    [finding] = verl_side.seam_findings(with_error("verl_import", "ImportError: no torch"))
    assert (finding.status, finding.found) == ("fail", "not compared: verl cannot be imported")


def test_many_moved_names_are_counted():
    moved = [f"a:{number} is gone" for number in range(66)]
    findings = list(verl_side.seam_findings(with_value(seams={"count": 66, "mismatches": moved})))
    assert [finding.found for finding in findings] == [*moved[:5], "and 61 more of 66"]


def needs(reward=REWARD, error=None, cuda=False, installed=(), environ=None):
    answers = Answers({}, {"first_reward": error}) if error else Answers({"first_reward": reward}, {})
    versions = dict.fromkeys(installed, "1.0")
    found = recipe_needs.recipe_findings(answers, device_answers(cuda, ""), environ or {}, versions.get)
    return {finding.name: finding for finding in found}


def test_the_first_reward_of_a_recipe_is_tried():
    assert probe.first_reward() == {**REWARD, "version": software.installed_version("math-verify")}
    assert needs()["reward"].status == "ok"
    assert needs(reward={**REWARD, "wrong": 1.0})["reward"].status == "fail"
    absent = needs(error="SpoConfigError: not installed")["reward"]
    assert (absent.status, "math-verify" in absent.fix) == ("fail", True)


def test_recipes_and_their_logger_are_looked_for(monkeypatch, tmp_path):
    found = needs(installed=["tensorboard"])
    assert (found["recipes"].status, found["tensorboard"].status) == ("ok", "ok")
    assert needs()["tensorboard"].status == "fail"
    monkeypatch.setenv("SPO_RECIPES_DIR", str(tmp_path))
    assert needs()["recipes"].status == "fail"
    assert needs(environ={"SPO_DATA_DIR": str(tmp_path)})["data"].status == "warn"
    (tmp_path / "a.parquet").touch()
    assert needs(environ={"SPO_DATA_DIR": str(tmp_path)})["data"].status == "ok"


@pytest.mark.parametrize(
    ("cuda", "environ", "status"),
    [(True, {}, "warn"), (True, {"VERL_PLATFORM": "cpu"}, "ok"), (False, {}, "ok")],
)
def test_flash_attention_is_needed_on_an_accelerator_only(cuda, environ, status):
    assert needs(cuda=cuda, environ=environ)["flash-attn"].status == status
    assert needs(cuda=cuda, environ=environ, installed=["flash-attn"])["flash-attn"].status == "ok"


@pytest.mark.parametrize(
    ("installed", "status", "text"),
    [
        ((), "ok", "model_engine=megatron only"),
        (("megatron-core",), "warn", "absent: mbridge, transformer-engine"),
        (recipe_needs.MEGATRON, "warn", "absent: megatron-bridge"),
        ((*recipe_needs.MEGATRON, recipe_needs.BRIDGE), "ok", "mbridge 1.0"),
    ],
)
def test_the_packages_of_megatron(installed, status, text):
    found = needs(installed=installed)["Megatron"]
    assert (found.status, text in found.found, bool(found.fix)) == (status, True, status == "warn")


def test_a_cpu_needs_no_transformer_engine():
    installed = ["megatron-core", "mbridge", "megatron-bridge"]
    assert needs(installed=installed)["Megatron"].status == "warn"
    assert needs(installed=installed, environ={"VERL_PLATFORM": "cpu"})["Megatron"].status == "ok"

"""The names that the plugin builds on, looked up in the installed verl and in made ones that lack or change them."""

import json
import os
import subprocess
import sys

import pytest

from spo_verl.launching import upgrade
from spo_verl.seam import Seam

BASE = "verl.trainer.ppo.v1.trainer_base"


def made_verl(folder, files):
    for name, text in {"__init__.py": "__version__ = '9.9'\nprint('noise')", **files}.items():
        file = folder / "verl" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def call(*arguments, platform="cuda"):
    env = {**os.environ, "VERL_PLATFORM": platform}
    command = [sys.executable, "-m", "spo_verl.launching.upgrade", *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def test_nothing_moved_in_the_installed_verl():
    assert list(upgrade.moved_names()) == []


def test_what_a_made_verl_lacks_is_printed(tmp_path):
    package = "trainer/ppo/v1/"
    made_verl(
        tmp_path,
        {
            "trainer/__init__.py": "",
            "trainer/ppo/__init__.py": "",
            "trainer/ppo/core_algos.py": "raise RuntimeError('no accelerator')",
            "trainer/ppo/new_home.py": "class ReplayBuffer:\n    pass",
            f"{package}__init__.py": "",
            f"{package}trainer_base.py": "class PPOTrainer:\n    def __init__(self, config, tokenizer): ...",
            f"{package}replay_buffer.py": "import verl.trainer.gone_too",
            f"{package}utils.py": "def MetricsAggregator(: a later Python",
        },
    )
    done = call("--verl", tmp_path, "--json", platform="cpu")
    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["version"], answer["folder"]) == ("9.9", str(tmp_path / "verl"))
    found = {(one["module"], tuple(one["names"])): one for one in answer["moved"] if len(one["names"]) == 1}
    whole = {one["module"]: one for one in answer["moved"] if len(one["names"]) > 1}
    changed = found[BASE, ("PPOTrainer.__init__",)]
    assert changed["what"] == "is (self, config, tokenizer), expected (self, config)"
    assert changed["room"] == "spo_verl/training"
    assert "has no attribute 'fit'" in found[BASE, ("PPOTrainer.fit",)]["what"]
    assert whole["verl.trainer.ppo.core_algos"]["what"] == "cannot be imported (RuntimeError: no accelerator)"
    lost = whole["verl.trainer.ppo.v1.replay_buffer"]
    assert lost["what"] == "cannot be imported (No module named 'verl.trainer.gone_too')"
    assert lost["elsewhere"] == ["verl.trainer.ppo.new_home"]
    assert whole["verl.trainer.ppo.v1.utils"]["what"].startswith("cannot be imported (SyntaxError")
    assert whole["verl.experimental.agent_loop.agent_loop"]["what"].startswith("is gone (No module named")
    assert whole["verl.experimental.agent_loop.agent_loop"]["room"] == "spo_verl/agent"
    assert not any("transfer_queue" in one["module"] for one in answer["moved"])
    on_cpu = {one["module"]: one["what"] for one in answer["moved"] if one["room"] == "spo_verl/cpu"}
    assert on_cpu["poll-interval"].startswith("verl.trainer.ppo.v1.replay_buffer cannot be imported")
    assert on_cpu["spo_verl/cpu/platform.py"].startswith("cannot be imported")


@pytest.mark.parametrize(
    ("files", "words"),
    [(None, "has no verl/__init__.py"), ({"__init__.py": "import no_such_package"}, "no_such_package")],
)
def test_without_a_verl_it_says_so(tmp_path, files, words):
    if files is not None:
        made_verl(tmp_path, files)
    done = call("--verl", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_how_it_reads(monkeypatch):
    monkeypatch.setattr(upgrade, "ROOMS", {"spo_verl/training": (Seam("json", "dumps", "read", "(obj)"),)})
    (one,) = upgrade.moved_names()
    lost = upgrade.Moved(
        "spo_verl/agent", "verl.gone", ("f", "g"), "is gone (No module named 'verl.gone')", ("verl.new",)
    )
    first, *lines = upgrade.as_text([one, lost], "9.9", "/there").splitlines()
    assert first == "verl 9.9 in /there: 1 names looked up"
    assert lines[0].startswith("  spo_verl/training: json:dumps is (obj, *, skipkeys=False")
    assert lines[0].endswith("expected (obj)")
    assert lines[1] == (
        "  spo_verl/agent: verl.gone is gone (No module named 'verl.gone'); 2 names of it are used; "
        "there is one in verl.new"
    )
    assert upgrade.as_text([], "9.9", "/there").endswith("\n  nothing moved")

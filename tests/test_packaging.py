"""The built wheel is whole: entry point, presets, and it works without the source tree."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

SHOW = """
import verl, spo_verl
from importlib.metadata import entry_points
from pathlib import Path
from hydra import compose, initialize_config_dir
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
with initialize_config_dir(config_dir=str(Path(verl.__file__).parent / "trainer/config"), version_base=None):
    config = compose("ppo_trainer", ["+spo=recipe"])
print(spo_verl.__file__)
print(get_adv_estimator_fn("spo").__module__, config.spo.preset, config.algorithm.adv_estimator)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    shutil.copytree(REPOSITORY / "spo_verl", source / "spo_verl", ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(out), "."]
    subprocess.run(command, cwd=source, check=True, timeout=900)
    [built] = out.glob("spo_verl-*.whl")
    return built


def test_the_wheel_carries_every_file_of_the_package(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    files = [
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "spo_verl").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert [name for name in files if name not in inside] == []
    assert "spo_verl/conf/spo/paper.yaml" in inside


def test_the_installed_wheel_registers_with_verl(wheel, tmp_path):
    target = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(wheel)],
        check=True,
        timeout=900,
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SHOW],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    lines = run.stdout.split("\n")
    assert lines[0].startswith(str(target)), run.stderr
    assert lines[1] == "spo_verl.training.estimator recipe spo"

"""The environment's parts: alias wheels, requirement files and the script that puts them together."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from spo_verl.cpu.environment import FOLDER
from spo_verl.cpu.environment.alias_wheels import ALIASES, main, write_wheel

ROOT = Path(__file__).resolve().parents[2]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (FOLDER / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pair) == 2 for pair in pairs)
    versions = {normal(name): version for name, version in pairs}
    assert len(versions) == len(pairs), "a package is pinned twice"
    return versions


def test_the_pins_are_for_every_python_3_11() -> None:
    """A distribution may have its first one: Debian 12 has 3.11.2."""
    asked = {
        normal(one.metadata["Name"]): one.metadata["Requires-Python"] for one in importlib.metadata.distributions()
    }
    asked = {name: asked[name] for name in pins() if asked.get(name)}
    assert len(asked) > 100
    assert [pair for pair in asked.items() if "3.11.0" not in SpecifierSet(pair[1])] == []


@pytest.mark.parametrize("alias", ALIASES, ids=lambda alias: alias.name)
def test_an_alias_wheel_holds_metadata_only(alias, tmp_path: Path) -> None:
    wheel = write_wheel(alias, tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        info = f"{alias.name}-{alias.version}.dist-info"
        assert sorted(archive.namelist()) == [f"{info}/METADATA", f"{info}/RECORD", f"{info}/WHEEL"]
        record = archive.read(f"{info}/RECORD").decode().splitlines()
        for line in record[:-1]:
            path, digest, size = line.split(",")
            content = archive.read(path)
            assert int(size) == len(content)
            expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            assert digest == f"sha256={expected}"
        assert record[-1] == f"{info}/RECORD,,"
        metadata = archive.read(f"{info}/METADATA").decode()
    assert f"Name: {alias.name}\nVersion: {alias.version}\n" in metadata
    assert [line for line in metadata.splitlines() if line.startswith("Requires-Dist")] == [
        f"Requires-Dist: {requirement}" for requirement in alias.requires
    ]
    assert "+" in alias.version, "without a local label an alias could pass for a published release"


def test_wheels_are_the_same_every_time(tmp_path: Path) -> None:
    assert main([str(tmp_path / "one")]) == main([str(tmp_path / "two")]) == 0
    for first in sorted((tmp_path / "one").iterdir()):
        assert first.read_bytes() == (tmp_path / "two" / first.name).read_bytes()
    assert len(list((tmp_path / "one").iterdir())) == len(ALIASES)


def test_pip_can_install_the_aliases(tmp_path: Path) -> None:
    main([str(tmp_path / "wheels")])
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", str(tmp_path / "site")]
    wheels = [str(path) for path in sorted((tmp_path / "wheels").iterdir())]
    subprocess.run([*command, *wheels], check=True, capture_output=True, timeout=120)
    script = "import importlib.metadata as m; print(m.version('vllm')); import torchvision"
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip().endswith("+cpu")
    assert "No module named 'torchvision'" in done.stderr


def test_the_pins_name_the_aliases_and_everything_that_is_required() -> None:
    versions = pins()
    for alias in ALIASES:
        assert versions[normal(alias.name)] == alias.version
    for name in ("requirements-runtime.txt", "requirements-megatron.txt", "requirements-dev.txt"):
        for line in (FOLDER / name).read_text().splitlines():
            if not line or line.startswith("#"):
                continue
            package, _, version = line.partition("==")
            assert normal(package) in versions, f"{package} in {name} has no pin"
            assert version in ("", versions[normal(package)])


def test_the_tests_run_with_the_pinned_tools() -> None:
    import importlib.metadata

    for name in ("verl", "torch", "ray", "pytest", "hypothesis", "ruff", "mypy", "numpy"):
        assert importlib.metadata.version(name) == pins()[name]


def test_no_package_index_is_named() -> None:
    for path in [*FOLDER.iterdir(), ROOT / "quickstart.sh", ROOT / "test.sh"]:
        if path.is_file():
            assert not re.search(r"https?://", path.read_text()), path.name


def shell(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run lines after sourcing the script, as quickstart.sh does, from another directory."""
    program = f'set -euo pipefail\n. "{FOLDER}/make_env.sh"\n{script}\n'
    return subprocess.run(
        ["bash", "-c", program], cwd="/", env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )


def test_a_missing_python_is_named(tmp_path: Path) -> None:
    done = shell(f'spo_make_env "{ROOT}" runtime', SPO_PYTHON="/nowhere/python", SPO_VENV=str(tmp_path / "venv"))
    assert done.returncode == 1
    assert "no Python 3.11 was found (/nowhere/python)" in done.stderr
    assert "SPO_PYTHON=" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_another_environment_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "precious").write_text("")
    done = shell(f'spo_make_env "{ROOT}" runtime', SPO_PYTHON=sys.executable, SPO_VENV=str(tmp_path / "venv"))
    assert done.returncode == 1
    assert "was not made by this script" in done.stderr
    assert [path.name for path in (tmp_path / "venv").iterdir()] == ["precious"]


def fake_commands(folder: Path, **scripts: str) -> str:
    folder.mkdir()
    for name, body in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_a_full_disk_is_reported_before_anything_is_made(tmp_path: Path) -> None:
    path = fake_commands(tmp_path / "bin", df="printf 'head\\nfs 9 9 1000000 1%% /\\n'")
    done = shell(
        f'spo_make_env "{ROOT}" runtime', SPO_PYTHON=sys.executable, SPO_VENV=str(tmp_path / "my venv"), PATH=path
    )
    assert done.returncode == 1
    assert "has 1000 MB free; the environment needs 5,000 MB" in done.stderr
    assert not (tmp_path / "my venv").exists()


def fake_environment(tmp_path: Path, pip: str) -> dict[str, str]:
    """An interpreter whose virtual environments have an interpreter that answers ``-m pip`` with a script."""
    venv = tmp_path / "my venv"
    inner = f'#!/bin/bash\nif [ "$1 $2" = "-m pip" ]; then\n{pip}\nfi\nexec "{sys.executable}" "$@"\n'
    (tmp_path / "inner").write_text(inner)
    outer = f"""#!/bin/bash
if [ "$1 $2" = "-m venv" ]; then
  mkdir -p "$3/bin"; cp "{tmp_path}/inner" "$3/bin/python"; chmod +x "$3/bin/python"; exit 0
fi
exec "{sys.executable}" "$@"
"""
    (tmp_path / "outer").write_text(outer)
    (tmp_path / "outer").chmod(0o755)
    return {"SPO_PYTHON": str(tmp_path / "outer"), "SPO_VENV": str(venv), "PIPLOG": str(tmp_path / "calls")}


RECORDING_PIP = 'printf "%s " "$@" >>"$PIPLOG"; printf "index=%s\\n" "${PIP_INDEX_URL:-}" >>"$PIPLOG"; exit 0'


def test_a_second_call_does_nothing_and_a_wider_one_adds(tmp_path: Path) -> None:
    environment = fake_environment(tmp_path, RECORDING_PIP)
    # The stand-in interpreter has the pinned torch already: verl, Megatron, tools and this package remain.
    lines = "\n".join(f'spo_make_env "{ROOT}" {kind}; wc -l <"$PIPLOG"' for kind in ("runtime", "runtime", "dev"))
    done = shell(f'{lines}\nspo_make_env "{ROOT}" runtime; wc -l <"$PIPLOG"; echo "$SPO_ENV_PYTHON"', **environment)
    assert done.returncode == 0, done.stderr
    *counts, python = done.stdout.split("\n")[:5]
    assert counts == ["3", "3", "7", "7"]
    assert python == f"{tmp_path}/my venv/bin/python"
    calls = (tmp_path / "calls").read_text().splitlines()
    assert all("constraints.txt" in call and "alias-wheels" in call for call in calls)
    assert f"-e {ROOT}" in calls[-1]


def test_an_interrupted_attempt_is_taken_up_again(tmp_path: Path) -> None:
    failing = 'test -e "$PIPLOG" && exit 0; touch "$PIPLOG"; echo "no matching distribution"; exit 1'
    environment = fake_environment(tmp_path, failing)
    first = shell(f'spo_make_env "{ROOT}" runtime', **environment)
    assert first.returncode == 1
    assert "no matching distribution" in first.stderr
    assert "pip.log" in first.stderr
    assert shell(f'spo_make_env "{ROOT}" runtime', **environment).returncode == 0


def test_a_hanging_installation_is_stopped(tmp_path: Path) -> None:
    environment = fake_environment(tmp_path, "exec sleep 60")
    done = shell(f'spo_make_env "{ROOT}" runtime', **environment, SPO_PIP_TIMEOUT="1")
    assert done.returncode == 1
    assert "took longer than 1 s and was stopped" in done.stderr


def test_torch_can_come_from_an_index_of_its_own(tmp_path: Path) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("torch==0.0.1+cpu\n")
    venv = tmp_path / "my venv"
    environment = fake_environment(tmp_path, RECORDING_PIP)
    shell(f'"$SPO_PYTHON" -m venv "{venv}"', **environment)
    done = shell(f'spo_install_torch "{venv}" "{constraints}"', **environment, SPO_TORCH_WHEELS="place/of/wheels")
    assert done.returncode == 0, done.stderr
    call = (tmp_path / "calls").read_text()
    assert "--no-deps torch==0.0.1+cpu" in call
    assert "index=place/of/wheels" in call
    (tmp_path / "my venv" / "bin" / "python").write_text("#!/bin/bash\nexit 1\n")
    refused = shell(f'spo_install_torch "{venv}" "{constraints}"', **environment)
    assert refused.returncode == 1
    assert "SPO_TORCH_WHEELS=" in refused.stderr


def test_the_scripts_are_executable() -> None:
    for name in ("quickstart.sh", "test.sh", ".ci/run"):
        assert os.access(ROOT / name, os.X_OK), name
        subprocess.run(["bash", "-n", str(ROOT / name)], check=True, timeout=20)

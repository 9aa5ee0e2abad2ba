"""What is built is whole: the source archive, the wheel made from it, and the wheel in a fresh environment."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.cli.helpers import row, write_rows

pytestmark = pytest.mark.long

REPOSITORY = Path(__file__).parents[1]
LEFT_OUT = (".git", ".venv*", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
OF_RUNS = ("runs", "data", "checkpoints", "evaluation", "outputs", "build", "dist")
"""Folders at the top that are nobody's source."""


def not_built(folder: str, names: list[str]) -> set[str]:
    """For :func:`shutil.copytree`: what a checkout may have and git ignores."""
    left_out = {name for name in names for pattern in LEFT_OUT if fnmatch(name, pattern)}
    return left_out | ({*OF_RUNS} & {*names} if Path(folder) == REPOSITORY else set())


USE = """
import json, sys
from pathlib import Path
import verl, spo_verl
from typer.testing import CliRunner
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from spo_verl.cli.app import app

def run(*arguments):
    done = CliRunner().invoke(app, [*arguments, "--json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, json.loads(done.stdout[done.stdout.index("{"):])

answers = {
    "package": spo_verl.__file__,
    "estimator": get_adv_estimator_fn("spo").__module__,
    "ls": run("recipes", "ls"),
    "show": run("recipes", "show", "ablations/token_measure"),
    "plan": run("plan", "gsm8k_qwen3_0_6b/spo", "actor_rollout_ref.rollout.max_num_seqs=64"),
    "own": run("plan", "python", "-m", "verl.trainer.main_ppo", "+spo=recipe", "data.train_batch_size=512",
               "actor_rollout_ref.model.path=Qwen/Qwen3-8B", "actor_rollout_ref.rollout.name=vllm"),
    "rehearse": run("rehearse", "gsm8k_qwen3_0_6b/spo", "actor_rollout_ref.rollout.name=sglang",
                    "--device", "cpu", "--data", sys.argv[1]),
    "cp": run("recipes", "cp", "gsm8k_qwen3_0_6b"),
    "again": run("recipes", "cp", "gsm8k_qwen3_0_6b"),
}
print("ANSWERS" + json.dumps(answers))
"""


def files_below(folder: Path) -> list[str]:
    found = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return [path.relative_to(REPOSITORY).as_posix() for path in found]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder with the source archive and the wheel that was made from it."""
    source = tmp_path_factory.mktemp("source") / "checkout"
    shutil.copytree(REPOSITORY, source, ignore=not_built)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, timeout=900, capture_output=True)
    return out


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    [file] = built.glob("spo_verl-*.whl")
    return file


def test_the_source_archive_holds_docs_patches_scripts_and_recipes(built):
    [archive] = built.glob("spo_verl-*.tar.gz")
    with tarfile.open(archive) as tar:
        inside = {name.partition("/")[2] for name in tar.getnames()}
    wanted = [name for folder in ("spo_verl", "recipes", "docs", "patches", "benchmarks", "tests", ".ci")
              for name in files_below(REPOSITORY / folder)]  # fmt: skip
    wanted += ["README.md", "CHANGELOG.md", "LICENSE", "quickstart.sh", "test.sh", "setup.py", "pyproject.toml"]
    assert [name for name in wanted if name not in inside] == []


def test_the_wheel_carries_every_file_of_the_package_and_the_recipes(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = [name for name in files_below(REPOSITORY / "spo_verl") if not name.startswith("spo_verl/recipes/")]
    recipes = [f"spo_verl/{name}" for name in files_below(REPOSITORY / "recipes")]
    assert [name for name in (*package, *recipes) if name not in inside] == []
    assert {"spo_verl/conf/spo/paper.yaml", "spo_verl/recipes/run.sh"} <= inside
    assert not [name for name in inside if not name.startswith(("spo_verl/", "spo_verl-"))]


def test_the_wheel_asks_for_what_a_recipe_needs_at_its_first_reward(wheel):
    with zipfile.ZipFile(wheel) as archive:
        [metadata] = [name for name in archive.namelist() if name.endswith("/METADATA")]
        lines = archive.read(metadata).decode().splitlines()
    asked = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    plain = [line for line in asked if "extra ==" not in line]
    assert any(line.startswith("math-verify") for line in plain)
    extras = {line.removeprefix("Provides-Extra: ") for line in lines if line.startswith("Provides-Extra: ")}
    assert extras == {"dev", "megatron", "plots", "vllm"}


@pytest.fixture(scope="module")
def answers(wheel, tmp_path_factory):
    """What an installed wheel answers in a fresh environment, far from the checkout.

    The environment sees the libraries of this one by a path, so that nothing has to be installed but the wheel.
    """
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True, timeout=300)
    python = folder / "env" / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index", str(wheel)],
        check=True,
        timeout=900,
    )
    [site] = (folder / "env" / "lib").glob("python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    rows = write_rows(folder / "rows.parquet", [row(f"{number} + 1", str(number + 1)) for number in range(120)])
    (folder / "elsewhere").mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SPO_RECIPES_DIR")}
    done = subprocess.run(
        [str(python), "-W", "ignore", "-c", USE, str(rows)],
        cwd=folder / "elsewhere",
        env={**environment, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert "ANSWERS" in done.stdout, done.stderr[-3000:]
    return folder, site, json.loads(done.stdout.partition("ANSWERS")[2])


def test_the_installed_wheel_registers_with_verl(answers):
    _, site, found = answers
    assert found["package"] == str(site / "spo_verl" / "__init__.py")
    assert found["estimator"] == "spo_verl.training.estimator"


def test_its_recipes_are_listed_shown_and_copied_once(answers):
    folder, site, found = answers
    status, listed = found["ls"]
    files = [path for path in (REPOSITORY / "recipes").glob("*/*.yaml") if "\ndefaults:" in path.read_text()]
    recipes = sorted(path.relative_to(REPOSITORY / "recipes").with_suffix("").as_posix() for path in files)
    assert (status, [recipe["name"] for recipe in listed["recipes"]]) == (0, recipes)
    assert {recipe["folder"] for recipe in listed["recipes"]} == {str(site / "spo_verl" / "recipes")}
    status, shown = found["show"]
    assert (status, shown["trains"]["estimator"], shown["trains"]["model"]) == (0, "spo", "Qwen/Qwen3-8B")
    names = [Path(file).relative_to(site / "spo_verl" / "recipes").as_posix() for file in shown["files"]]
    assert names == [
        "ablations/token_measure.yaml", "qwen3_8b_math_tir/spo.yaml", "ablations/parts/batch.yaml",
        "qwen3_8b_math_tir/parts/common.yaml", "qwen3_8b_math_tir/strategy/dp.yaml",
        "qwen3_8b_math_tir/strategy/megatron.yaml",
    ]  # fmt: skip
    assert found["cp"][0] == 0
    copy = folder / "elsewhere" / "recipes"
    assert (copy / "gsm8k_qwen3_0_6b" / "spo.yaml").read_text() == (
        REPOSITORY / "recipes" / "gsm8k_qwen3_0_6b" / "spo.yaml"
    ).read_text()
    assert os.access(copy / "run.sh", os.X_OK)
    status, refused = found["again"]
    assert status == 2
    assert "would be overwritten" in refused["error"]["message"]


def test_plan_and_rehearse_work_far_from_the_checkout(answers):
    folder, _, found = answers
    status, planned = found["plan"]
    assert (status, planned["fits"], planned["model"]["name"]) == (0, True, "Qwen3-0.6B")
    status, own = found["own"]
    assert (status in (0, 1), own["recipe"], own["model"]["name"]) == (True, "command line", "Qwen3-8B")
    assert own["sections"]["operations of a step, expected lengths"]["drift"]["inputs"]["f_n"] == 1
    status, rehearsed = found["rehearse"]
    assert status == 1
    assert "only vLLM generates" in rehearsed["stopped"]  # before the launch, which has tests of its own
    assert [stage["name"] for stage in rehearsed["stages"]] == ["composed", "validated", "data and stand-in", "reduced"]
    assert rehearsed["folder"].startswith(str(folder / "elsewhere"))

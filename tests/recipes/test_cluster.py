"""What can be said of files for clusters without one: shells parse, the manifest parses and names a recipe."""

import subprocess

import yaml

from tests.recipes.helpers import RECIPES, ROOT


def test_shell_files_parse():
    for file in (ROOT / "run.sh", ROOT / "cluster" / "slurm.sbatch"):
        subprocess.run(["bash", "-n", str(file)], check=True)


def test_the_manifest_names_a_recipe_and_as_many_nodes_as_it_asks_for():
    spec = yaml.safe_load((ROOT / "cluster" / "rayjob.yaml").read_text())["spec"]
    words = spec["entrypoint"].split()
    assert words[2] in RECIPES
    nodes = 1 + sum(group["replicas"] for group in spec["rayClusterSpec"]["workerGroupSpecs"])
    assert f"trainer.nnodes={nodes}" in words

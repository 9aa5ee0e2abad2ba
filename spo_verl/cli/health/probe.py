"""``python -m spo_verl.cli.health.probe NAME``: what can only be seen by importing verl, vLLM or Ray.

Runs in a process of its own, because such an import takes seconds, may hang or crash, and cannot be undone. Each
question answers with a line on stdout as soon as it is known, so that a later one that hangs takes nothing away.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

MARK = "spo-verl-probe "

Question = Callable[[], Any]


def verl_import() -> Any:
    """verl with its plugins, and the platform that it has chosen."""
    import verl
    from verl.plugin.platform import get_platform

    platform = get_platform()
    return {
        "version": verl.__version__,
        "path": os.path.dirname(verl.__file__),
        "device": platform.device_name,
        "available": bool(platform.is_available()),
        "plugin": "spo_verl.plugin" in sys.modules,
    }


def estimator() -> Any:
    """Whether the registry of advantage estimators has ``spo``, and from where."""
    from verl.trainer.ppo import core_algos

    function = core_algos.ADV_ESTIMATOR_REGISTRY.get("spo")
    return None if function is None else f"{function.__module__}.{function.__name__}"


def groups() -> Any:
    """The presets that hydra can compose, and the platforms."""
    from hydra.core.config_store import ConfigStore

    repository = ConfigStore.instance().repo
    return {group: sorted(name.removesuffix(".yaml") for name in repository.get(group, {})) for group in GROUPS}


def seams() -> Any:
    """Names of verl that are not as the plugin expects."""
    from spo_verl.training.seams import SEAMS, mismatches

    return {"count": len(SEAMS), "mismatches": list(mismatches())}


def workarounds() -> Any:
    """What is changed in verl and vLLM on a CPU, and what of it does not fit; None where it is not active."""
    from spo_verl.conf import chosen_platform

    if chosen_platform() != "cpu":
        return None
    # The import of verl activates them; they cannot be imported before it.
    import verl  # noqa: F401

    from spo_verl import cpu
    from spo_verl.cpu.registry import check_target
    from spo_verl.errors import SpoVersionError

    entries, problems = cpu.workarounds(), []
    for entry in entries:
        try:
            check_target(entry)
        except (SpoVersionError, ImportError) as error:
            problems.append(f"{entry.name}: {error}")
    return {"names": list(dict.fromkeys(entry.name for entry in entries)), "problems": problems}


def torch_device() -> Any:
    """What torch sees."""
    import torch

    cuda = torch.cuda.is_available()
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())] if cuda else []
    return {"version": torch.__version__, "cuda": cuda, "devices": devices}


def vllm_device() -> Any:
    """The platform that vLLM was built for and has chosen."""
    import vllm
    from vllm.platforms import current_platform

    return {"version": vllm.__version__, "device": current_platform.device_type}


def first_reward() -> Any:
    """What the recipes' reward gives a right and a wrong answer that only a comparison of values settles."""
    from importlib.metadata import version

    from spo_verl.agent.math_reward import close_all, compute_score, require_math_verify

    require_math_verify()
    scores = [compute_score("doctor", f"\\boxed{{\\frac{{1}}{{{n}}}}}", "0.5")["score"] for n in (2, 3)]
    close_all()
    return {"right": scores[0], "wrong": scores[1], "version": version("math-verify")}


def ray_cluster() -> Any:
    """Ray, and the cluster that RAY_ADDRESS names; none is started."""
    import ray

    address = os.environ.get("RAY_ADDRESS", "")
    if not address:
        return {"version": ray.__version__, "address": ""}
    _connect(address)
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        alive = [node for node in ray.nodes() if node["Alive"]]
        resources = {name: ray.cluster_resources().get(name, 0.0) for name in ("CPU", "GPU")}
        return {"version": ray.__version__, "address": address, "nodes": len(alive), "resources": resources}
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    """Fail at once where nobody listens: Ray itself tries for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()


_CONNECT_S = 10.0

GROUPS = ("spo", "platform")

PROBES: dict[str, tuple[Question, ...]] = {
    "verl": (verl_import, estimator, groups, seams, workarounds),
    "devices": (torch_device, vllm_device),
    "ray": (ray_cluster,),
    "reward": (first_reward,),
}


def answer(question: Question) -> dict[str, Any]:
    """The answer of a question, or the error that it met; errors are what a probe is there to find."""
    try:
        return {"question": question.__name__, "value": question()}
    except BaseException as error:  # noqa: BLE001 - a foreign import may raise anything, SystemExit included
        return {"question": question.__name__, "error": f"{type(error).__name__}: {error}"}


def main(name: str) -> None:
    for question in PROBES[name]:
        print(MARK + json.dumps(answer(question)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

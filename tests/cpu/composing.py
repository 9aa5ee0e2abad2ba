"""verl's own configuration with overrides, composed in a child process that has loaded the plugin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

COMPOSE = textwrap.dedent(
    """
    import json, os, sys
    import verl
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf
    folder = os.path.join(os.path.dirname(verl.__file__), "trainer", "config")
    composed = []
    for overrides in json.loads(sys.argv[1]):
        with initialize_config_dir(folder, version_base=None):
            composed.append(OmegaConf.to_container(compose("ppo_trainer", overrides), resolve=False))
    print("COMPOSED", json.dumps(composed))
    """
)


def compose(requests: list[list[str]], **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "VERL_PLATFORM"}
    return subprocess.run(
        [sys.executable, "-c", COMPOSE, json.dumps(requests)],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def flatten(node: object, prefix: str = "") -> dict[str, object]:
    if isinstance(node, dict) and node:
        return {key: value for name, child in node.items() for key, value in flatten(child, f"{prefix}.{name}").items()}
    return {prefix.lstrip("."): node}


def composed_configs(done: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    line = next(line for line in done.stdout.splitlines() if line.startswith("COMPOSED "))
    return [flatten(config) for config in json.loads(line.removeprefix("COMPOSED "))]

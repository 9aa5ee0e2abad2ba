"""Runs verl's own code and reports what it does: ``python -m tests.patches.probe OUT.json``. Launches no trainer."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

from omegaconf import OmegaConf

from tests.patches import overlay, trainer_probes, worker_probes  # in this order: the overlay comes before verl
from tests.patches.applying import VERL


def generated_configs() -> dict[str, bool]:
    """Whether each flattened reference file is what verl's own script would write."""
    agree = {}
    for file in sorted((VERL / "trainer" / "config").glob("_generated_*.yaml")):
        text = overlay.source(f"verl/trainer/config/{file.name}")
        overrides = re.search(r"--cfg job (.*?)'", text).group(1).split()
        flat = OmegaConf.to_yaml(overlay.composed(*overrides))
        agree[file.name] = text.endswith("\n\n" + flat[flat.index("actor_rollout_ref") :])
    return agree


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report = {
            "generated configs": generated_configs(),
            "estimators": trainer_probes.estimators(),
            "loop": trainer_probes.loop(),
            "curriculum": trainer_probes.curriculum(),
            "poll interval": trainer_probes.poll_interval(),
            "marker": trainer_probes.marker(folder),
            "old policy": worker_probes.old_policy(folder),
            "process group": worker_probes.process_group(folder),
            "parameters": worker_probes.parameters(),
            "rotary base": worker_probes.rotary_base(),
            "log lines": worker_probes.log_lines(),
            "sockets": worker_probes.sockets(),
        }
    Path(sys.argv[1]).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

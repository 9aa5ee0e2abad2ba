"""A small Ray of this process's own, which a busy machine gets time to start."""

from __future__ import annotations

from typing import Any

from spo_verl.cpu.ray_start import wait_for_node


def start_ray(*, num_cpus: int, **options: Any) -> None:
    """``ray.init`` of a new local cluster; ray.shutdown ends it."""
    import ray
    from ray._private import services

    if not hasattr(services.get_node, "__wrapped__"):
        wait_for_node(services)
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, **options)

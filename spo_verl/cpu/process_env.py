"""Environment variables that verl, Ray and TransferQueue read on a small machine."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from spo_verl.cpu.registry import declare

DEFAULTS: dict[str, str] = {
    # vLLM compiles parts of its sampler, which needs a C++ compiler and takes minutes on two cores.
    "TORCHDYNAMO_DISABLE": "1",
    # vLLM binds its threads to the cores of a NUMA node each: there is no second node for a second rank, and every
    # replica gets the same core of the first.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Ray starts as many idle workers as it was given CPUs; here that number is a count of slots.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    # Threads per TransferQueue client; its default is meant for large hosts.
    "TQ_NUM_THREADS": "2",
    # Seconds, of three attempts: a run whose storage process has died ends within a minute instead of after ten.
    "TQ_SIMPLE_STORAGE_SEND_RECV_TIMEOUT": "12",
}


def set_defaults(environ: MutableMapping[str, str] | None = None) -> None:
    """Set what is not set. Processes that this one starts inherit the values."""
    target = os.environ if environ is None else environ
    for name, value in DEFAULTS.items():
        target.setdefault(name, value)


declare("process-environment", "verl.trainer.main_ppo:run_ppo", applied="environment", apply=set_defaults)

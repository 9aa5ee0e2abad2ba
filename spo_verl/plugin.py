"""The module that verl's entry-point group ``verl.plugins`` loads inside ``import verl``, in every process.

It only leaves hooks that run when the modules they extend are imported, so that a rollout or reward worker pays
for nothing. verl swallows what a plugin raises, therefore whatever fails here is written to stderr first.

| hooked module | what happens there |
|---|---|
| ``hydra.core.config_store`` | the config groups ``spo`` (and ``platform`` on a CPU) become selectable |
| ``verl.trainer.ppo.core_algos`` | the estimator ``spo`` and the policy loss ``spo_movement`` are registered |
| ``verl.trainer.ppo.v1.trainer_base`` | a trainer built for ``adv_estimator=spo`` becomes an SPO trainer |
| ``verl.trainer.ppo.ray_trainer`` | the legacy trainer refuses ``adv_estimator=spo`` |

With any other estimator nothing that verl builds differs from a verl without the plugin, with three exceptions: a run
with a preset of SPO is refused (:func:`spo_verl.training.checks.refuse_other_estimator`), a run can ask for SPO's order
of mini-batches (``+mini_batch_seed=0``, see :mod:`spo_verl.training.order`), and a launch of the quickstart sets
``SPO_STOP_AT`` to end in time.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

ESTIMATOR = "spo"
STOP_AT = "SPO_STOP_AT"
"""Of :mod:`spo_verl.launching.deadline`, which is imported only where a launch has set it."""


def _uses_spo(config: Any) -> bool:
    algorithm = config.get("algorithm") if hasattr(config, "get") else None
    return algorithm is not None and str(algorithm.get("adv_estimator", "")) == ESTIMATOR


UNUSED_SETTINGS = (
    "spo_verl: WARNING: this run has settings under `spo`, and algorithm.adv_estimator={}: it does NOT train with SPO. "
    "Set algorithm.adv_estimator=spo, or remove it from the command line after +spo=<preset>, which sets it."
)


def _has_unused_settings(config: Any) -> bool:
    """Whether somebody who left an old estimator in a script would take this run for one with SPO."""
    return hasattr(config, "get") and config.get(ESTIMATOR) is not None and config.get("algorithm") is not None


def _refuse_unused_preset(config: Any) -> None:
    """A preset with another estimator is refused; of settings alone, which files may share, there is a warning."""
    from spo_verl.training.checks import refuse_other_estimator

    refuse_other_estimator(config)
    print(UNUSED_SETTINGS.format(config.algorithm.adv_estimator), file=sys.stderr, flush=True)


def _asks_for_order(config: Any) -> bool:
    """Whether a run with another estimator wants its mini-batches dealt out as SPO's are."""
    return hasattr(config, "get") and config.get("mini_batch_seed") is not None


def _register_config_groups(module: ModuleType) -> None:
    from spo_verl.conf import chosen_platform, store_groups

    store_groups(module.ConfigStore.instance(), chosen_platform())


def _register_estimator(module: ModuleType) -> None:
    from spo_verl.training.estimator import spo_advantage

    module.register_adv_est(ESTIMATOR)(spo_advantage)
    # By its own module's name: imported only when the loss is called, which most processes never do.
    module.register_policy_loss("spo_movement")(_measured_loss)


def _measured_loss(*args: Any, **kwargs: Any) -> Any:
    """The policy loss of ``spo.forgetting.mode=drift``; see :mod:`spo_verl.training.movement`."""
    from spo_verl.training.movement import measured_loss

    return measured_loss(*args, **kwargs)


def _extend_v1_trainer(module: ModuleType) -> None:
    trainer_base = module.PPOTrainer

    def __new__(cls: type, config: Any = None, *args: Any, **kwargs: Any) -> Any:
        if config is not None and _uses_spo(config):
            from spo_verl.training.trainer import class_for

            return object.__new__(class_for(config, cls))
        if config is not None and _has_unused_settings(config):
            _refuse_unused_preset(config)
        if config is not None and _asks_for_order(config):
            from spo_verl.training.order import seeded_trainer_class

            cls = seeded_trainer_class(cls)
        return object.__new__(cls)

    _set_new(trainer_base, __new__)
    if STOP_AT in os.environ:
        from spo_verl.launching.deadline import install

        install(module)


def _set_new(cls: Any, new: Callable[..., Any]) -> None:
    """Give ``cls`` a ``__new__`` without changing the signature that it shows."""
    new.__signature__ = inspect.signature(cls.__init__)  # type: ignore[attr-defined]
    cls.__new__ = new


def _refuse_legacy_trainer(module: ModuleType) -> None:
    legacy = module.RayPPOTrainer

    def __new__(cls: type, config: Any = None, *args: Any, **kwargs: Any) -> Any:
        if config is not None and _uses_spo(config):
            from spo_verl.errors import SpoConfigError

            raise SpoConfigError(
                "algorithm.adv_estimator=spo needs verl's V1 trainer, and this run built the legacy one "
                f"({cls.__module__}.{cls.__qualname__}): set trainer.use_v1=True and start "
                "`python -m verl.trainer.main_ppo`."
            )
        if config is not None and _has_unused_settings(config):
            _refuse_unused_preset(config)
        return object.__new__(cls)

    _set_new(legacy, __new__)


HOOKS: dict[str, Callable[[ModuleType], None]] = {
    "hydra.core.config_store": _register_config_groups,
    "verl.trainer.ppo.core_algos": _register_estimator,
    "verl.trainer.ppo.v1.trainer_base": _extend_v1_trainer,
    "verl.trainer.ppo.ray_trainer": _refuse_legacy_trainer,
}


def _report(what: str, error: BaseException) -> None:
    from spo_verl import SUPPORTED_VERL

    print(
        f"spo_verl: {what} failed, so algorithm.adv_estimator=spo is not available in this process "
        f"({type(error).__name__}: {error}). Works with verl {', '.join(SUPPORTED_VERL)}; reinstall it "
        "with `pip install -e .` from its folder in the environment of this verl.",
        file=sys.stderr,
        flush=True,
    )


def _reporting(name: str, hook: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    """A hook that fails must not take down a run that does not use SPO, and must not be silent either."""

    def run(module: ModuleType) -> None:
        try:
            hook(module)
        except Exception as error:  # noqa: BLE001 - reported on stderr; an spo run stops at "unknown estimator"
            _report(f"extending {name}", error)

    return run


def register() -> None:
    """Leave the hooks. Calling it again changes nothing.

    Raises:
        ImportError: a dependency is missing; the message has been written to stderr as well.
    """
    global _registered
    if _registered:
        return
    try:
        import wrapt

        from spo_verl.conf import chosen_platform

        for name, hook in HOOKS.items():
            wrapt.register_post_import_hook(_reporting(name, hook), name)
        if chosen_platform() == "cpu":
            from spo_verl import cpu

            cpu.activate()
    except Exception as error:
        _report("loading the plugin", error)
        raise
    _registered = True


_registered = False
register()

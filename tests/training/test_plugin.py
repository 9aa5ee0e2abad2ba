"""The entry point: found by verl, cheap in a worker, and loud when something is missing."""

import os
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from omegaconf import OmegaConf

from spo_verl.conf import PRESETS
from spo_verl.errors import SpoConfigError

pytestmark = pytest.mark.long

HEAVY = (
    "ray",
    "pydantic",
    "pyarrow",
    "omegaconf",
    "hydra",
    "spo_verl.training",
    "spo_verl.tracker",
    "spo_verl.core",
)


def run(code: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "VERL_PLATFORM": "", **env},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_entry_point_is_installed():
    [found] = [entry for entry in entry_points(group="verl.plugins") if entry.name == "spo"]
    assert found.value == "spo_verl.plugin"


def test_loading_the_plugin_imports_nothing_heavy():
    done = run(f"import sys, spo_verl.plugin; print([name for name in {HEAVY!r} if name in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_the_estimator_is_registered_when_verl_needs_it_and_not_before():
    done = run(
        "import sys, verl; print('spo_verl.plugin' in sys.modules, 'spo_verl.training.estimator' in sys.modules)\n"
        "from verl.trainer.ppo import core_algos; print(core_algos.get_adv_estimator_fn('spo').__name__)"
    )
    assert done.stdout.split() == ["True", "False", "spo_advantage"], done.stderr


def test_a_missing_dependency_is_said_on_stderr():
    # verl swallows the error of a plugin: the message must be there all the same
    done = run("import sys; sys.modules['wrapt'] = None\nimport verl; print('verl is up')")
    assert done.stdout.strip() == "verl is up"
    assert "spo_verl: loading the plugin failed" in done.stderr
    assert "wrapt" in done.stderr
    assert "pip install -e ." in done.stderr


def test_a_failing_hook_is_said_on_stderr_and_leaves_other_estimators_alone():
    done = run(
        "import sys; sys.modules['spo_verl.training.estimator'] = None\n"
        "from verl.trainer.ppo import core_algos; print('grpo' in core_algos.ADV_ESTIMATOR_REGISTRY)"
    )
    assert done.stdout.strip() == "True"
    assert "extending verl.trainer.ppo.core_algos failed" in done.stderr


def test_registering_twice_changes_nothing():
    done = run(
        "import spo_verl.plugin as p, wrapt; p.register(); p.register()\n"
        "from verl.trainer.ppo import core_algos; print(list(core_algos.ADV_ESTIMATOR_REGISTRY).count('spo'))"
    )
    assert done.stdout.strip() == "1", done.stderr


def spo_config(estimator: str = "spo"):
    return OmegaConf.create({"algorithm": {"adv_estimator": estimator}, "actor_rollout_ref": {"hybrid_engine": True}})


def test_the_legacy_trainer_refuses_spo():
    import verl  # noqa: F401
    from verl.trainer.ppo.ray_trainer import RayPPOTrainer

    from spo_verl.errors import SpoConfigError

    with pytest.raises(SpoConfigError, match="trainer.use_v1=True"):
        RayPPOTrainer(spo_config(), None, {}, None)
    assert type(RayPPOTrainer.__new__(RayPPOTrainer, spo_config("grpo"))) is RayPPOTrainer


def test_each_mode_has_an_spo_trainer_with_the_probe_behind_the_mode():
    from verl.trainer.ppo.v1 import get_trainer_cls
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    from spo_verl.training.trainer import AfterOldLogProb, SpoTrainer, spo_trainer_class

    for mode in ("sync", "colocate_async", "separate_async"):
        mode_class = get_trainer_cls(mode)
        built = mode_class.__new__(mode_class, spo_config())
        assert isinstance(built, mode_class)
        order = type(built).__mro__
        assert [c for c in order if c in (SpoTrainer, mode_class, AfterOldLogProb, PPOTrainer)] == [
            SpoTrainer,
            mode_class,
            AfterOldLogProb,
            PPOTrainer,
        ]
        assert type(built) is spo_trainer_class(mode_class) is spo_trainer_class(type(built))
        assert type(mode_class.__new__(mode_class, spo_config("grpo"))) is mode_class


def test_settings_of_spo_beside_another_estimator_are_warned_about(capsys):
    from verl.trainer.ppo.v1 import get_trainer_cls

    mode_class = get_trainer_cls("sync")
    config = OmegaConf.merge(spo_config("grpo"), {"spo": {"seed": 1}})
    assert type(mode_class.__new__(mode_class, config)) is mode_class
    assert "algorithm.adv_estimator=grpo: it does NOT train with SPO" in capsys.readouterr().err
    mode_class.__new__(mode_class, spo_config("grpo"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("preset", [path.stem for path in sorted(PRESETS.glob("*.yaml"))])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_preset_beside_another_estimator_is_refused_in_one_sentence(preset, legacy):
    from verl.trainer.ppo.ray_trainer import RayPPOTrainer
    from verl.trainer.ppo.v1 import get_trainer_cls

    trainer = RayPPOTrainer if legacy else get_trainer_cls("sync")
    for estimator in ("grpo", "rloo", "one_of_their_own"):
        config = OmegaConf.merge(spo_config(estimator), {"spo": {"preset": preset}})
        with pytest.raises(SpoConfigError) as error:
            trainer.__new__(trainer, config)
        message = str(error.value)
        assert f"delete algorithm.adv_estimator={estimator}" in message
        assert f"delete +spo={preset}" in message
        assert message.count(". ") == 0
        assert "\n" not in message

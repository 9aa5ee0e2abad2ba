"""Made runs that several tests read and none changes."""

import pytest

from tests.support.records import made_run


@pytest.fixture(scope="package")
def sync_run(tmp_path_factory):
    """Ended; checkpoints of steps 3 and 6."""
    return made_run(tmp_path_factory.mktemp("sync") / "run", prompts=80, steps=6, batch=30, checkpoint_every=3)


@pytest.fixture(scope="package")
def async_run(tmp_path_factory):
    """Under way: every ending, two sessions, steps after the last checkpoint."""
    folder = tmp_path_factory.mktemp("async") / "run"
    return made_run(
        folder,
        mode="separate_async",
        sessions=2,
        prompts=90,
        steps=7,
        batch=24,
        checkpoint_every=3,
        ended=False,
        seed=1,
    )

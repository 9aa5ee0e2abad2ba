"""The Ray actor: the same tracker behind it, saves beside the verbs, errors that keep their class."""

import pickle
import threading
import time
import uuid

import numpy as np
import pytest

from spo_verl.errors import SpoCheckpointError, SpoDatasetMismatchError, SpoRewardError, SpoServiceError, SpoStateError
from spo_verl.history.observing import Observer, services_at
from spo_verl.tracker import Late, PromptSources, Tracker, TrackerSettings, service
from spo_verl.tracker.service import TrackerClient, TrackerHost, TrackerReader, connect, start_service
from tests.support.local_ray import start_ray

from .helpers import CONSTANT, folder_bytes, keys, observe_one, responses, train_step

pytestmark = pytest.mark.long

SETTINGS = TrackerSettings()


@pytest.fixture(scope="module")
def cluster():
    """One small local Ray for all tests of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        start_ray(num_cpus=1, object_store_memory=100_000_000, namespace=f"tracker-{uuid.uuid4().hex[:8]}")
        yield ray
        ray.shutdown()


@pytest.fixture
def client(cluster):
    service = start_service(f"spo-{uuid.uuid4().hex[:8]}")
    yield service
    service.stop()


def test_same_state_through_the_client_and_another_one(client):
    plain = Tracker.create(keys(30), SETTINGS)
    assert client.create(keys(30), SETTINGS) == 30
    other = connect(client.name)
    for version in range(6):
        service = client if version % 2 else other
        assert train_step(plain, version, 7).tolist() == train_step(service, version, 7).tolist()
    assert client.digest() == plain.digest() == pickle.loads(pickle.dumps(other)).digest()
    assert client.metrics() == plain.metrics()
    reader = TrackerReader(client._actor, client.name)  # what a process has that only looks
    assert (reader.digest(), reader.metrics()) == (plain.digest(), plain.metrics())
    assert not hasattr(reader, "draw")
    assert (client.size, client.open_count, client.counters) == (30, 0, plain.counters)
    np.testing.assert_array_equal(client.values(), plain.values())
    np.testing.assert_array_equal(client.evidence([3])[0], plain.evidence([3])[0])
    np.testing.assert_array_equal(client.value_histogram(5), plain.value_histogram(5))


def test_watchers_change_nothing_and_share_one_overview(client):
    client.create(keys(30), SETTINGS)
    for version in range(3):
        train_step(client, version, 7)
    digest, metrics = client.digest(), client.metrics()
    reader = TrackerReader(client._actor, client.name)
    seen = [reader.overview() for _ in range(10)]
    assert all(one["metrics"] == metrics for one in seen)
    assert sum(seen[0]["value_histogram"]) == 30
    assert client.digest() == digest


def test_an_overview_is_worked_out_once_in_a_while_however_many_ask(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(service.time, "monotonic", lambda: now[0])
    host = TrackerHost()
    with pytest.raises(SpoStateError, match="no tracker yet"):
        host.overview()
    host.create(keys(30), SETTINGS)
    first = host.overview()
    assert first["age"] == 0
    assert first["value_histogram"][service.OVERVIEW_BINS // 2] == 30
    host.call("draw", 5)
    now[0] += service.OVERVIEW_SECONDS / 2
    assert host.overview()["metrics"] == first["metrics"]
    assert host.overview()["age"] == service.OVERVIEW_SECONDS / 2
    now[0] += service.OVERVIEW_SECONDS / 2
    assert host.overview()["metrics"]["drawn"] == 5


def test_a_watcher_in_a_process_of_its_own_finds_and_reads_the_service(cluster):
    namespace = f"spo-{uuid.uuid4().hex[:8]}"
    client = start_service("spo_tracker", namespace)
    client.create(keys(30), SETTINGS)
    train_step(client, 0, 7)
    address = cluster.get_runtime_context().gcs_address
    digest = client.digest()
    assert {"name": "spo_tracker", "namespace": namespace} in services_at(address)
    with Observer(address, "spo_tracker", namespace) as observer:
        observer.wait(120)
        assert observer.error is None
        assert observer.latest["metrics"] == client.metrics()
        assert client.digest() == digest
        client.stop()
        deadline = time.monotonic() + 60
        while observer.error is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert "SpoServiceError" in observer.error
    with Observer(address, "spo_tracker", namespace) as observer:
        observer.wait(120)
        assert "there is no tracker service" in observer.error
    with Observer("127.0.0.1:1", "spo_tracker", namespace) as observer:
        observer.wait(120)
        assert "ConnectionRefusedError" in observer.error


def test_single_verbs(client):
    client.create(keys(3), SETTINGS)
    frozen = client.dispatch(["a", "b"], [0, 1], 4)
    assert frozen.version_B.tolist() == [4, 4]
    assert client.redispatch(["b"], 5).version_B.tolist() == [5]
    step = client.finish_step(["a"], [0], [1.0], [np.nan], remember_uids=["a"], responses=responses([6]))
    assert step.observe.new == 1
    assert client.recall(["b", "a"]).stored.row_B.tolist() == [1]
    assert client.open_uids() == ["a", "b"]
    client.settle(["a", "b"])
    assert client.counters["failed"] == 1


def test_event_time_and_late_rollouts_through_the_client(client):
    settings = TrackerSettings(forgetting_mode="version", floor=1.0, references=())
    plain = Tracker.create(keys(12), settings)
    client.create(keys(12), settings)
    drawn: list[list[int]] = []
    for tracker in (plain, client):
        drawn.append(tracker.draw(4, 3).slot_B.tolist())
        tracker.dispatch(["a", "b", "c", "d"], [0, 1, 2, 3], 3)
        step = tracker.finish_step(
            ["a"], [0], [1.0], [np.nan], settle_uids=["a"], late=[Late("surplus", ["b"], [0], [0.0])]
        )
        assert (step.observe.new, step.untrained) == (2, 1)
        assert tracker.absorb([Late("stale", ["c"], [0], [1.0])]).new == 1
        tracker.settle(["d"], "aborted")
    assert drawn[0] == drawn[1]
    assert client.digest() == plain.digest()
    assert (client.version, client.movement, client.counters) == (3, None, plain.counters)
    with pytest.raises(SpoStateError, match="plays no part in forgetting_mode=version"):
        client.finish_step([], [], [], [], movement=0.1)


def test_strange_arguments_through_the_client(client):
    settings = TrackerSettings(forgetting_mode="version", references=())
    client.create(keys(3), settings, version=40)
    assert client.dispatch(["held"], [1], 42).n_eff_B.tolist() == [0.875**2]
    before = client.digest()
    for action in (
        lambda: client.dispatch((uid for uid in ["a"]), [0], 42),
        lambda: client.dispatch(["a"], [0], 42.0),
        lambda: client.finish_step(["held"], [0], [None], [0.0]),
        lambda: client.settle(["held"], threading.Lock()),
    ):
        with pytest.raises(SpoStateError):
            action()
    assert client.digest() == before


def test_quotas_through_the_client(client, tmp_path):
    settings = TrackerSettings(quota={"a": 2, "b": 1})
    sources = PromptSources.of("ab" * 15)
    plain = Tracker.create(keys(30), settings, sources=sources)
    client.create(keys(30), settings, sources=sources)
    for version in range(4):
        assert train_step(plain, version, 7).tolist() == train_step(client, version, 7).tolist()
    assert client.metrics() == plain.metrics()
    plain.snapshot().write(tmp_path / "spo")
    again = start_service(f"spo-{uuid.uuid4().hex[:8]}")
    try:
        again.load(tmp_path / "spo", keys(30), settings, sources=sources)
        assert again.draw(7).slot_B.tolist() == plain.draw(7).slot_B.tolist()
        with pytest.raises(SpoStateError, match="'a' 2 / 3 x 24 = 16"):
            again.draw(24)
    finally:
        again.stop()


def test_save_and_load_within_the_actor(client, cluster, tmp_path):
    client.create(keys(30), SETTINGS)
    for version in range(4):
        train_step(client, version, 7)
    begun = client.begin_save(tmp_path / "spo", 4, {"batches": 4})
    assert begun["digest"] == client.digest()
    assert 0 <= begun["seconds"] < 60
    train_step(client, 4, 7)
    written = client.end_save()
    assert written.digest == begun["digest"] != client.digest()
    assert written.nbytes == sum(len(content) for content in folder_bytes(tmp_path / "spo").values())

    second = start_service(f"spo-{uuid.uuid4().hex[:8]}")
    report = second.load(tmp_path / "spo", keys(30), SETTINGS)
    assert (report.step, report.extra, report.matched, report.digest) == (4, {"batches": 4}, 30, begun["digest"])
    assert train_step(second, 4, 7).shape == (7,)
    assert second.digest() == client.digest()
    second.stop()


def test_a_save_under_way_does_not_hold_up_the_verbs(cluster, tmp_path):
    gate = tmp_path / "gate"

    class SlowDisk(TrackerHost):
        """Writes only when the gate is open."""

        def begin_save(self, *args, **kwargs):
            from spo_verl.tracker.checkpoint import snapshot

            write = snapshot.write

            def wait_and_write(*args, **kwargs):
                deadline = time.monotonic() + 120
                while not gate.exists() and time.monotonic() < deadline:
                    time.sleep(0.01)
                return write(*args, **kwargs)

            snapshot.write = wait_and_write
            return super().begin_save(*args, **kwargs)

    actor = cluster.remote(num_cpus=0, concurrency_groups={"save": 1})(SlowDisk).remote()
    client = TrackerClient(actor, "slow disk")
    client.create(keys(30), SETTINGS)
    begun = client.begin_save(tmp_path / "spo", 0)
    results = []
    waiter = threading.Thread(target=lambda: results.append(client.end_save()))
    waiter.start()
    for version in range(3):  # while the writer waits, and while somebody waits for the writer
        train_step(client, version, 7)
    with pytest.raises(SpoStateError, match="begun and not ended"):
        client.begin_save(tmp_path / "other", 1)
    assert waiter.is_alive()
    assert not (tmp_path / "spo").exists()
    gate.touch()
    waiter.join(timeout=60)
    assert results[0].digest == begun["digest"] != client.digest()
    saved, _ = Tracker.load(tmp_path / "spo", keys(30), SETTINGS)
    assert saved.digest() == begun["digest"]
    client.stop()


def test_errors_keep_their_class(client, tmp_path):
    with pytest.raises(SpoStateError, match="no tracker yet; call create or load first"):
        client.draw(1)
    with pytest.raises(SpoStateError, match="no save of the tracker has been begun"):
        client.end_save()
    Tracker.create(keys(3), SETTINGS).snapshot().write(tmp_path / "spo")
    with pytest.raises(SpoDatasetMismatchError, match="none of its 3 prompts"):
        client.load(tmp_path / "spo", keys([9]), SETTINGS)
    client.create(keys(3), CONSTANT)
    with pytest.raises(SpoStateError, match="has a tracker already"):
        client.create(keys(3), CONSTANT)
    client.dispatch(["a"], [0], 0)
    for action, error in (
        (lambda: client.draw(4), SpoStateError),
        (lambda: client.finish_step(["a"], [0], [2.0], [0.0]), SpoRewardError),
        (lambda: client.recall(["ghost"]), SpoStateError),
        (lambda: client.begin_save(tmp_path / "x", 0, {"bad": {1, 2}}), SpoStateError),
    ):
        with pytest.raises(error) as caught:
            action()
        assert type(caught.value) is error
    (tmp_path / "file").write_text("in the way")
    client.begin_save(tmp_path / "file" / "spo", 0)
    with pytest.raises(SpoCheckpointError, match="writing the tracker checkpoint .*file/spo failed") as caught:
        client.end_save()
    assert type(caught.value) is SpoCheckpointError
    assert client.begin_save(tmp_path / "spo", 1, digest=False).keys() == {"seconds"}
    assert client.end_save().digest == client.digest()


def test_a_dead_actor_is_a_service_error(cluster):
    client = start_service(f"spo-{uuid.uuid4().hex[:8]}")
    client.create(keys(3), SETTINGS)
    client.stop()
    for action in (lambda: client.draw(1), client.digest, client.end_save):
        with pytest.raises(SpoServiceError, match=r"is gone .*trainer\.resume_mode=auto"):
            action()
    with pytest.raises(SpoServiceError, match="there is no tracker service"):
        connect(client.name)


def test_a_taken_name_is_refused(client):
    with pytest.raises(SpoServiceError, match="Another run in this Ray cluster"):
        start_service(client.name)


def test_host_without_ray_writes_in_a_thread(tmp_path):
    host = TrackerHost()
    host.create(keys(5), CONSTANT)
    observe_one(host._tracker, "a", 0, 0, 1.0)
    begun = host.begin_save(tmp_path / "spo", 3)
    assert host.end_save().digest == begun["digest"] == host.call("digest")
    again = TrackerHost()
    assert again.load(tmp_path / "spo", keys(5), CONSTANT).step == 3
    assert again.call("size") == 5

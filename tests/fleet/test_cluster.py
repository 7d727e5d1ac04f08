"""Fleets on a Dask cluster of this machine, one of whose workers is killed on the way."""

import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from groupfx.errors import UsageError
from groupfx.fleet import Entry, Fleet, FleetOptions, Outcome, cluster, read_fleet, run_fleet
from groupfx.fleet.cluster import Cluster
from tests.fleet import stubs

# What Dask does at its own end, with sockets and loops of its own.
pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
STUBS = Path(stubs.__file__)


# One a test: a worker that a test has killed takes seconds to come back.
@pytest.fixture
def scheduler() -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
    ) as found:
        yield found


def models(folder: Path, number: int) -> Fleet:
    folder.mkdir()
    for place in range(number):
        (folder / f"{place:02}.pt").write_text(str(place))
    return read_fleet([folder], Entry(name="", model=Path()))


def test_a_worker_that_is_killed_loses_no_model(tmp_path: Path, scheduler: LocalCluster) -> None:
    found = Cluster.of(scheduler.scheduler_address)
    assert found.workers == 2
    with Client(scheduler.scheduler_address, set_as_default=False) as client:
        pids = client.run(os.getpid)
    assert len(pids) == 2
    left = [*pids.values()][:1]

    def told(result: object) -> None:
        if left:
            os.kill(left.pop(), signal.SIGKILL)

    fleet = models(tmp_path / "models", 40)
    cheap = replace(found, worker="tests.fleet.cheap_work")
    result = run_fleet(fleet, tmp_path / "out", engine=cheap, told=told)
    assert not left
    assert result.ok, result.failures
    assert len(result.models) == 40


def test_limits_and_classes_are_those_of_this_machine(
    tmp_path: Path, scheduler: LocalCluster
) -> None:
    (tmp_path / "zoo.yaml").write_text(f"- {{factory: '{STUBS}:hangs', time: 2}}\n")
    fleet = read_fleet([tmp_path / "zoo.yaml"], Entry(name="", model=Path()))
    options = FleetOptions(scheduler=scheduler.scheduler_address)
    result = run_fleet(fleet, tmp_path / "out", options)
    (model,) = result.models
    failure = model.outcome.failure
    assert failure is not None
    assert (failure.kind, failure.stage) == ("time", "open")


def test_a_job_that_loses_every_worker_is_told(
    tmp_path: Path, scheduler: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "run_job", lost)
    # Each worker that is lost takes seconds to come back.
    monkeypatch.setattr(scheduler.scheduler, "allowed_failures", 0)
    result = run_fleet(
        models(tmp_path / "models", 1),
        tmp_path / "out",
        engine=Cluster.of(scheduler.scheduler_address),
    )
    (model,) = result.models
    failure = model.outcome.failure
    assert failure is not None
    assert (failure.kind, failure.environment) == ("crash", "lost worker")
    assert "its worker was lost: " in failure.message


def lost(job: object, worker: str) -> list[Outcome]:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_PATIENCE", 0.5)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UsageError, match="no scheduler of Dask answers there"):
            Cluster.of(address)


@pytest.mark.parametrize("address", ["nonsense", "wat://nowhere:1", "tcp://host", ""])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UsageError, match=rf"--scheduler '{address}' is no address: "):
        Cluster.of(address)


def test_a_cluster_without_workers() -> None:
    refused = pytest.raises(UsageError, match="it has no workers")
    options = {"protocol": "tcp", "processes": False, "dashboard_address": ":0"}
    with LocalCluster(n_workers=0, **options) as empty, refused:
        Cluster.of(empty.scheduler_address)

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.slurm.cluster.cluster import Cluster, Site, install, running
from tests.slurm.cluster.jobs import clear


def require_slurm(accounting: bool = True) -> None:
    """Install SLURM if need be; where that cannot be done, skip with the reason, or in CI fail with it."""
    try:
        install(accounting)
    except RuntimeError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run this: {error}")
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def signalling_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    require_slurm()
    with running(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def silent_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    require_slurm(accounting=False)
    site = Site(user_signal=False, accounting=False, grace=1)
    with running(tmp_path_factory.mktemp("silent"), site) as cluster:
        yield cluster


@pytest.fixture
def slurm(signalling_cluster: Cluster) -> Iterator[Cluster]:
    """Four idle nodes of a site with accounting, which sends the user signal at preemption."""
    yield signalling_cluster
    clear(signalling_cluster)


@pytest.fixture
def silent_slurm(silent_cluster: Cluster) -> Iterator[Cluster]:
    """Four idle nodes of a site without accounting, which sends no user signal at preemption."""
    yield silent_cluster
    clear(silent_cluster)


@pytest.fixture
def start_slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Site], Cluster]]:
    """Start a cluster of one's own, for a site unlike the other two."""
    with ExitStack() as clusters:

        def start(site: Site) -> Cluster:
            require_slurm(site.accounting)
            return clusters.enter_context(running(tmp_path_factory.mktemp("own"), site))

        yield start

"""The provider suite's fixtures: a small cluster of its own, on each provider that can run here."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gridstead.cluster import secrets
from gridstead.cluster.progress import Progress
from gridstead.cluster.site import Site

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gridstead.cluster.plan import Plan

SPEC = """\
name: {name}
provider: {provider}
nodes:
  server:
    count: 1
    services: [nfs_server]
    volumes:
      - {{name: data, size: 1G, mount: /data, filesystem: ext4}}
  worker:
    count: 2
    services: [nfs_client]
"""

#: The test cloud's zone without hypervisors, in the words of cluster.yml.
FAKE_ZONE = """\
openstack: {availability_zone: fake}
image: {name: fake}
"""


class SilentSite(Site):
    """A site whose nodes are records of the cloud and run nothing, so nobody answers."""

    def provision(self, replace: Iterable[str] = (), *, wait: bool = True, adopt: bool = False) -> Plan:
        """As a site does, without waiting for an answer."""
        del wait
        return super().provision(replace, wait=False, adopt=adopt)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The provider is chosen from outside: the OpenStack one needs a cloud (tests/cloud) and OS_CLOUD."""
    parser.addoption("--provider", default="podman", choices=["podman", "openstack"], help="the provider under test")


@pytest.fixture(scope="session")
def provider_name(request: pytest.FixtureRequest) -> str:
    """The provider under test."""
    return str(request.config.getoption("--provider"))


@pytest.fixture
def answering(provider_name: str) -> None:
    """Skips what needs nodes that answer."""
    if provider_name == "openstack":
        pytest.skip("servers of nova's fake driver run nothing; the e2e part asks real ones")


@contextmanager
def _cluster(directory: Path, name: str, provider: str, *, public: bool = False) -> Iterator[Site]:
    directory.mkdir(exist_ok=True)
    text = SPEC.format(name=name, provider=provider)
    if provider == "openstack":
        text = text.replace("nodes:", FAKE_ZONE + "nodes:").replace("count:", "flavor: {name: fake.small}\n    count:")
        # A router and a floating address take Neutron half as long as all the rest: one of the clusters has them.
        text = text.replace("count: 1", "count: 1\n    public: true") if public else text
    (directory / "cluster.yml").write_text(text)
    kind = SilentSite if provider == "openstack" else Site
    opened = kind.open(directory / "cluster.yml", Progress(quiet=True))
    secrets.ensure(opened.paths)
    opened.down(volumes=True, final=False, adopt=True)
    yield opened
    # Opened anew: the test may have changed the declaration.
    kind.open(directory / "cluster.yml", Progress(quiet=True)).down(volumes=True, adopt=True)
    assert not opened.provider.observe()


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state directory of the suite's own."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("state")
        patch.setenv("GRIDSTEAD_STATE", str(path))
        yield path


@pytest.fixture(scope="session")
def _standing(tmp_path_factory: pytest.TempPathFactory, provider_name: str) -> Iterator[Site]:
    with _cluster(tmp_path_factory.mktemp("standing"), "standing", provider_name) as opened:
        yield opened


@pytest.fixture
def site(_standing: Site) -> Site:
    """A cluster that is up and whole, one for all tests that leave it so; what a test before this one hurt is mended first."""
    _standing.provision()
    return _standing


@pytest.fixture
def fresh(tmp_path: Path, provider_name: str) -> Iterator[Site]:
    """A cluster of which nothing exists yet; nothing of it exists afterwards."""
    with _cluster(tmp_path / "one", "conformance", provider_name) as opened:
        yield opened


@pytest.fixture
def neighbour(tmp_path: Path, provider_name: str) -> Iterator[Site]:
    """Another cluster beside it."""
    with _cluster(tmp_path / "two", "neighbour", provider_name, public=True) as opened:
        yield opened

"""Fixtures of the OpenStack tests: a small cluster in the test cloud's zone without hypervisors, and the cloud itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openstack
import pytest

from project import inventory
from support import cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALL = """\
name: faults
provider: openstack
openstack: {availability_zone: fake}
image: {name: fake}
nodes:
  server:
    count: 1
    public: true
    flavor: {name: fake.small}
    services: [nfs_server]
    volumes:
      - {name: data, size: 1G, mount: /data, filesystem: ext4}
  worker:
    count: 2
    anti_affinity: true
    flavor: {cpus: 1, memory: 512}
    services: [nfs_client]
    volumes:
      - {name: scratch, size: 1G, mount: /scratch, filesystem: ext4}
"""


@pytest.fixture(scope="session", autouse=True)
def _state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A state directory of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRIDSTEAD_STATE", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def member() -> Any:
    """The cloud, as the project's member sees it."""
    if "OS_CLOUD" not in os.environ:
        pytest.fail('no cloud: run tests/cloud/cloud up, then eval "$(tests/cloud/cloud env)"')
    return openstack.connect()


@pytest.fixture(scope="session")
def admin() -> Any:
    """The cloud, as its administrator sees it."""
    return openstack.connect(cloud="gridstead-test-admin")


@pytest.fixture
def declared(tmp_path: Path) -> Path:
    """The cluster.yml of a small cluster of which nothing exists, for tests in which nothing comes to be."""
    spec = tmp_path / "cluster.yml"
    spec.write_text(SMALL)
    return spec


@pytest.fixture
def inner(small: Path) -> Path:
    """The same without a way in from outside: no router, no floating address, which take Neutron half as long as all the rest."""
    small.write_text(SMALL.replace("    public: true\n", ""))
    return small


@pytest.fixture
def small(declared: Path, member: Any) -> Iterator[Path]:
    """The cluster.yml of a small cluster of which nothing exists yet, and nothing may exist afterwards."""
    spec = declared
    cluster("--site", spec, "down", "--volumes", "--yes")
    before = inventory(member)
    yield spec
    spec.write_text(SMALL)
    cluster("--site", spec, "down", "--volumes", "--yes")
    assert inventory(member) == before

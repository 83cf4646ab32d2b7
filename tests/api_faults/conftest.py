"""Fixtures of the OpenStack tests: a small cluster in the test cloud's zone without hypervisors, and the cloud itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openstack
import pytest

from cloud.faulty import FaultyCloud
from cloud.faulty import cloud as proxied_cloud
from project import INNER, SMALL, inventory
from support import cluster

if TYPE_CHECKING:
    from collections.abc import Iterator


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
def proxied() -> Iterator[FaultyCloud]:
    """The cloud behind a proxy that fails when it is told to."""
    with proxied_cloud(Path(os.environ["OS_CLIENT_CONFIG_FILE"]), os.environ["OS_CLOUD"]) as opened:
        yield opened


@pytest.fixture(scope="session", autouse=True)
def _clean(_state: None, member: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What an interrupted run of these tests left is taken away, once."""
    del member  # a clear word when there is no cloud
    spec = tmp_path_factory.mktemp("before") / "cluster.yml"
    spec.write_text(SMALL)
    cluster("--site", spec, "down", "--volumes", "--yes", "--adopt")


@pytest.fixture
def small(declared: Path, member: Any) -> Iterator[Path]:
    """The cluster.yml of a small cluster of which nothing exists yet, and nothing may exist afterwards."""
    before = inventory(member)
    yield declared
    if inventory(member) != before:
        declared.write_text(SMALL)
        cluster("--site", declared, "down", "--volumes", "--yes", "--adopt")
        assert inventory(member) == before


@pytest.fixture
def inner(small: Path) -> Path:
    """The same without a way in from outside: no router, no floating address, which take Neutron half as long as all the rest."""
    small.write_text(INNER)
    return small

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
    from collections.abc import Iterator

SPEC = """\
name: {name}
provider: {provider}
nodes:
  server:
    count: 1
    services: [nfs_server]
    volumes:
      - {{name: data, size: 400M, mount: /data, filesystem: ext4}}
  worker:
    count: 2
    services: [nfs_client]
"""


@pytest.fixture(scope="session", params=["podman"])
def provider_name(request: pytest.FixtureRequest) -> str:
    """The providers under test; the OpenStack provider joins here."""
    return str(request.param)


@contextmanager
def _cluster(directory: Path, name: str, provider: str) -> Iterator[Site]:
    directory.mkdir(exist_ok=True)
    (directory / "cluster.yml").write_text(SPEC.format(name=name, provider=provider))
    opened = Site.open(directory / "cluster.yml", Progress(quiet=True))
    secrets.ensure(opened.paths)
    opened.down(volumes=True, final=False)
    yield opened
    opened.down(volumes=True)
    assert not opened.provider.observe()


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state directory of the suite's own."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("state")
        patch.setenv("GRIDSTEAD_STATE", str(path))
        yield path


@pytest.fixture
def site(tmp_path: Path, provider_name: str) -> Iterator[Site]:
    """A cluster of which nothing exists yet; nothing of it exists afterwards."""
    with _cluster(tmp_path / "one", "conformance", provider_name) as opened:
        yield opened


@pytest.fixture
def neighbour(tmp_path: Path, provider_name: str) -> Iterator[Site]:
    """Another cluster beside it."""
    with _cluster(tmp_path / "two", "conformance-b", provider_name) as opened:
        yield opened

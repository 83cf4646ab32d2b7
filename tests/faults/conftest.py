"""Fixtures of the fault tests: sites of their own, which are gone afterwards, whatever happened to them."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest

from support import ROOT, cluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SMALL = """\
name: faults
provider: podman
nodes:
  server:
    count: 1
    services: [nfs_server]
    volumes:
      - {name: data, size: 100M, mount: /data, filesystem: ext4}
  worker:
    count: 2
    services: [nfs_client]
    volumes:
      - {name: scratch, size: 100M, mount: /scratch, filesystem: ext4}
"""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """The cluster.yml of a small cluster; nothing of it exists yet."""
    spec = tmp_path / "cluster.yml"
    spec.write_text(SMALL)
    yield spec
    spec.write_text(SMALL)
    cluster("--site", spec, "down", "--volumes")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a whole site like inventories/local, up and configured."""
    where = tmp_path_factory.mktemp("whole") / "gridstead-faults"
    shutil.copytree(ROOT / "inventories" / "local", where)
    spec = where / "cluster.yml"
    spec.write_text(re.sub(r"(?m)^name: local$", "name: gridstead-faults", spec.read_text()))
    try:
        cluster("--site", where, "up", timeout=1200)
        yield where
    finally:
        cluster("--site", where, "down", "--volumes")

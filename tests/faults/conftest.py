"""Fixtures of the fault tests: sites of their own, which are gone afterwards, whatever happened to them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from leftovers import leftovers
from support import ROOT, Site, cluster

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

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
#: The tests that failed, of those that were given the whole site: the next one must not pay for it.
FAILED = pytest.StashKey[set[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", type=Path, help="the directory of a whole site that is up, in place of one of the tests' own")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """The cluster.yml of a small cluster; nothing of it exists yet."""
    spec = tmp_path / "cluster.yml"
    spec.write_text(SMALL)
    yield spec
    if leftovers("faults"):
        spec.write_text(SMALL)
        cluster("--site", spec, "down", "--volumes", "--yes")
    assert leftovers("faults") == []


@pytest.fixture(scope="session")
def _whole(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if given := pytestconfig.getoption("--whole"):
        yield given
        return
    where = tmp_path_factory.mktemp("whole") / "gridstead-recovery"
    shutil.copytree(ROOT / "inventories" / "local", where)
    spec = where / "cluster.yml"
    text = re.sub(r"(?m)^name: local$", "name: gridstead-recovery", spec.read_text())
    # Patience is the operator's; here nobody comes back by waiting.
    spec.write_text(text + "\nrepair: {patience: 2, boot: 60}\n")
    try:
        cluster("--site", where, "up", timeout=1200)
        yield where
    finally:
        cluster("--site", where, "down", "--volumes", "--yes")


@pytest.fixture(scope="session")
def _declared(_whole: Path) -> str:
    return (_whole / "cluster.yml").read_text()


@pytest.fixture
def whole(request: pytest.FixtureRequest, _whole: Path, _declared: str) -> Path:
    """The directory of a whole site like inventories/local, up and configured: one for all tests of what happens to a site.

    Each leaves it as it was. After one that failed it is put right again, so that no test falls for another's reason.
    """
    if request.config.stash.setdefault(FAILED, set()):
        (_whole / "cluster.yml").write_text(_declared)
        for hook in ("before.yml", "after.yml"):
            (_whole / hook).unlink(missing_ok=True)
        cluster("--site", _whole, "up", "--full", timeout=1200)
        slurm = Site.look(_whole).first("slurm_controller")
        slurm.sh("for user in root grid alice bob; do scancel --user=$user; done; scontrol update nodename=ALL state=resume", check=False)
        request.config.stash[FAILED].clear()
    return _whole


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember what failed on the whole site."""
    report = yield
    if report.failed and "whole" in getattr(item, "fixturenames", ()):
        item.config.stash.setdefault(FAILED, set()).add(item.nodeid)
    return report

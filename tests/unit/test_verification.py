"""What a site is checked with: what it offers, and no more often than it has to be."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from gridstead.cluster import verification
from gridstead.cluster.paths import SitePaths
from gridstead.cluster.site import Site
from gridstead.cluster.spec import Cluster

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The checks that were made, in place of making them."""
    made: list[tuple[Any, ...]] = []
    for name in ("_first_job", "_first_file"):
        monkeypatch.setattr(verification, name, lambda _site, *arguments, name=name: made.append((name, *arguments)))
    return made


def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **kinds: list[str]) -> Site:
    monkeypatch.setenv("GRIDSTEAD_STATE", str(tmp_path))
    spec = Cluster.model_validate({"name": "x", "nodes": {kind: {"count": 1, "services": services} for kind, services in kinds.items()}})
    (tmp_path / "x").mkdir(exist_ok=True)
    return Site(spec, SitePaths(tmp_path / "cluster.yml", "x"), cast(Any, None), cast(Any, SimpleNamespace()))


@pytest.mark.parametrize(
    ("kinds", "check"),
    [
        ({"head": ["nfs_server", "slurm_controller", "arc_ce"], "compute": ["nfs_client", "slurm_node"]}, ("_first_job", "head001", "ARC")),
        (
            {
                "ce": ["nfs_client", "arc_ce", "slurm_client"],
                "head": ["nfs_server", "slurm_controller"],
                "compute": ["nfs_client", "slurm_node"],
            },
            ("_first_job", "ce001", "ARC"),
        ),
        ({"login": ["slurm_client"], "head": ["slurm_controller"], "compute": ["slurm_node"]}, ("_first_job", "login001", "Slurm")),
        ({"head": ["slurm_controller", "nfs_server"], "compute": ["slurm_node", "nfs_client"]}, ("_first_job", "head001", "Slurm")),
        ({"head": ["slurm_controller", "arc_ce"]}, None),
        ({"server": ["nfs_server", "slurm_controller"], "worker": ["nfs_client"]}, ("_first_file", "/grid", "server001", "worker001")),
        ({"server": ["nfs_server"]}, None),
        ({"proxy": ["cvmfs_squid"]}, None),
    ],
)
def test_the_check_fits_what_the_site_offers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    checks: list[tuple[Any, ...]],
    kinds: dict[str, list[str]],
    check: tuple[str, ...] | None,
) -> None:
    trial = site(tmp_path, monkeypatch, **kinds)
    verification.first_check(trial)
    assert checks == ([check] if check else [])
    assert verification.stands(trial)


def test_a_check_stands_for_a_while_and_not_when_something_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checks: list[tuple[Any, ...]]
) -> None:
    trial = site(tmp_path, monkeypatch, server=["nfs_server"], worker=["nfs_client"])
    assert not verification.stands(trial), "never checked"
    verification.first_check(trial)
    assert verification.stands(trial)
    long_ago = time.time() - verification.STANDS - 1
    os.utime(trial.paths.checked, (long_ago, long_ago))
    assert not verification.stands(trial)
    verification.first_check(trial)
    monkeypatch.setattr(verification, "_first_file", lambda *_: (_ for _ in ()).throw(verification.VerificationError("no")))
    trial.paths.checked.unlink()
    with pytest.raises(verification.VerificationError):
        verification.first_check(trial)
    assert not verification.stands(trial), "a check that failed"
    assert len(checks) == 2

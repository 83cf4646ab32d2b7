"""Fixtures of the end-to-end tests: they run on a site that is up and leave it as they found it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from support import Node, Site

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--site",
        default=os.environ.get("GRIDSTEAD_SITE", "local"),
        help="a name under inventories/, a directory, or a cluster.yml (default: local)",
    )


@pytest.fixture(scope="session")
def site(pytestconfig: pytest.Config) -> Site:
    """The site under test."""
    found = Site.look(pytestconfig.getoption("--site"))
    assert found.nodes, f"site {found.name} has no nodes; run: tools/cluster up --site {found.argument}"
    return found


@pytest.fixture(scope="session")
def controller(site: Site) -> Node:
    """Where slurmctld runs, and Slurm's commands."""
    return site.first("slurm_controller")


@pytest.fixture(scope="session")
def login(site: Site) -> Node:
    """Where users log in and submit: the login node, and without one the controller's."""
    nodes = [node for node in site.having("slurm_client") if "arc_ce" not in node.services]
    return nodes[0] if nodes else site.first("slurm_controller")


@pytest.fixture(scope="session")
def root(site: Site) -> str:
    """What homes, session directories and cache lie below."""
    return str(site.variables["gridstead_shares"][0])


@pytest.fixture(scope="session")
def ce(site: Site) -> Node:
    """Where the A-REX runs, and ARC's client: INTERNAL is an interface within one machine."""
    found = site.first("arc_ce")
    assert "arc_client" in found.services, f"{found.name} has a CE and no client for it"
    return found


@pytest.fixture(scope="session")
def computes(site: Site) -> list[Node]:
    """The nodes that run jobs."""
    found = site.having("slurm_node")
    assert found, f"site {site.name} has no node with slurm_node"
    return found


@pytest.fixture
def scratch(ce: Node) -> Iterator[str]:
    """A fresh directory of user grid on the shared file system; gone afterwards."""
    path = ce.out("mktemp -d ~/e2e.XXXXXX", user="grid")
    yield path
    ce.sh(f"rm -rf {path}", user="grid")

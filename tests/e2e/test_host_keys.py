"""Nodes on OpenStack are known by their host keys before the first word to them: from their consoles, or else from themselves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cloud.faulty import Answer
from cloud.faulty import cloud as proxied_cloud
from gridstead.cluster import spec_file
from gridstead.cluster.paths import SitePaths
from gridstead.cluster.site import find_spec

if TYPE_CHECKING:
    from support import Site


def ed25519(known_hosts: Path) -> set[str]:
    """The lines of the one type that is asked for where there are no consoles."""
    return {line for line in known_hosts.read_text().splitlines() if " ssh-ed25519 " in line}


@pytest.mark.parametrize("status", [404, 501])
def test_a_cloud_that_shows_no_consoles(site: Site, status: int) -> None:
    declaration = find_spec(site.argument)
    spec = spec_file.load(declaration)
    if spec.provider != "openstack":
        pytest.skip(f"{spec.provider} tells the host keys of its nodes by another way than consoles")
    if not (os.environ.get("OS_CLIENT_CONFIG_FILE") and os.environ.get("OS_CLOUD")):
        pytest.skip("to put a proxy before the cloud, OS_CLIENT_CONFIG_FILE and OS_CLOUD must name it")
    known_hosts = SitePaths(declaration.absolute(), spec.name).known_hosts
    before, expected = known_hosts.read_text(), ed25519(known_hosts)
    assert len(expected) == len(site.nodes)
    known_hosts.unlink()
    try:
        with (
            proxied_cloud(Path(os.environ["OS_CLIENT_CONFIG_FILE"]), os.environ["OS_CLOUD"]) as proxied,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setenv("OS_CLIENT_CONFIG_FILE", str(proxied.clouds_yaml))
            rule = proxied.proxy.inject(Answer(status), method="POST", path=r"/servers/[^/]+/action$", times=None)
            site.cluster("up", "--no-configure")
        assert rule.hits == len(site.nodes)
        assert set(known_hosts.read_text().splitlines()) == expected
    finally:
        known_hosts.write_text(before)

"""What comes in from outside: what the site declares, and nothing else; inside the cluster, everything."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from gridstead.cluster import spec_file
from gridstead.cluster.site import find_spec

if TYPE_CHECKING:
    from support import Node, Site


def reached(host: str, port: int) -> bool:
    """Whether somebody answers: a refusal is an answer, silence is a security group's."""
    try:
        socket.create_connection((host, port), timeout=10).close()
    except ConnectionRefusedError:
        return True
    except TimeoutError:
        return False
    return True


def test_only_what_is_declared_comes_in(site: Site, computes: list[Node]) -> None:
    spec = spec_file.load(find_spec(site.argument))
    if spec.provider == "podman":
        pytest.skip("containers have no security groups: their network is reached from this machine alone")
    # The way in from outside.
    entry = next(node for node in site.nodes.values() if spec.nodes[node.kind].public)
    declared = {
        port
        for rule in spec.security_rules
        if rule.protocol == "tcp"
        and (entry.kind in rule.kinds or set(rule.services) & set(entry.services) or not (rule.kinds or rule.services))
        for port in range(rule.port_range[0], rule.port_range[1] + 1)
    }
    listening = {
        int(address.rpartition(":")[2]) for address in entry.out("ss -Hltn | awk '{print $4}'").split() if "127.0.0." not in address
    }
    assert 22 in declared & listening
    assert listening - declared, "nothing listens that ought to be out of reach"
    with ThreadPoolExecutor(max_workers=16) as pool:
        ports = sorted(listening | declared)
        answers = dict(zip(ports, pool.map(lambda port: reached(entry.variables["ansible_host"], port), ports), strict=True))
    assert {port for port, answered in answers.items() if answered} == declared
    # A refusal is an answer here too: some that listen do so for a moment only.
    silent = f"for port in {' '.join(map(str, sorted(listening)))}; do timeout 10 bash -c '</dev/tcp/{entry.address}/'$port 2>&-; [ $? != 124 ] || echo $port; done"
    assert computes[0].out(silent) == ""

"""Choosing a network that clashes with nothing on this machine."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network

from gridstead.cluster.errors import InputError, PreflightError

#: Where free networks are looked for. Two networks that overlap on one host end in "No route to host".
POOL = IPv4Network("10.64.0.0/10")


def choose(name: str, taken: Mapping[IPv4Network, str]) -> IPv4Network:
    """A free /24, the same one for the same name where nothing else has it.

    Args:
        name: the cluster's name.
        taken: networks in use, each with what uses it.

    Raises:
        PreflightError: all are taken.
    """
    count = 2 ** (24 - POOL.prefixlen)
    start = zlib.crc32(name.encode()) % count
    for offset in range(count):
        base = int(POOL.network_address) + ((start + offset) % count) * 256
        candidate = IPv4Network((base, 24))
        if not any(candidate.overlaps(network) for network in taken):
            return candidate
    raise PreflightError(f"no free network in {POOL}", hint="name one in cluster.yml: network: {cidr: …}")


def check(network: IPv4Network, taken: Mapping[IPv4Network, str]) -> None:
    """Refuse a declared network that clashes.

    Raises:
        InputError: naming what it clashes with.
    """
    for other, what in taken.items():
        if network.overlaps(other) and other.prefixlen:
            raise InputError(
                f"{network} clashes with {other} on this machine ({what})",
                key="network.cidr",
                hint="choose another network, or auto",
            )


def addresses(network: IPv4Network, nodes: list[str], present: Mapping[str, str]) -> dict[str, str]:
    """An address for each node: the one it has, else the lowest free one from .11 on.

    Args:
        network: the cluster's network.
        nodes: the nodes wanted, in order.
        present: addresses of nodes that are there.

    Raises:
        InputError: the network is too small.
    """
    used = set(present.values())
    first = 11 if network.prefixlen <= 26 else 2
    free = (str(IPv4Address(int(network.network_address) + i)) for i in range(first, network.num_addresses - 1))
    chosen: dict[str, str] = {}
    for node in nodes:
        if node not in present:
            address = next((candidate for candidate in free if candidate not in used), None)
            if address is None:
                raise InputError(f"{network} is too small for {len(nodes)} nodes", key="network.cidr")
            used.add(address)
        chosen[node] = present.get(node) or address or ""
    return chosen

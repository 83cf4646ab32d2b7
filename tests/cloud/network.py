"""The host's side of the cloud's network: a veth pair, a route to the floating addresses, NAT to the outside."""

from __future__ import annotations

import contextlib
import json
import socket
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from cloud.machine import Machine
from cloud.settings import Settings
from gridstead.cluster.command import CommandError, run
from gridstead.cluster.errors import GridsteadError, InputError

#: The cloud's end of the veth pair, inside its network namespace.
INSIDE = "eth0"
#: The bridge inside that is the external network `public`.
BRIDGE = "br-ex"


def _ip(*arguments: str) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = json.loads(run(["ip", "-json", *arguments]) or "[]")
    return answer


def check(settings: Settings) -> None:
    """See that nobody else uses the cloud's networks.

    Raises:
        InputError: a route of this machine leads there.
    """
    variables = {settings.network: "GRIDSTEAD_CLOUD_NETWORK", settings.floating: "GRIDSTEAD_CLOUD_FLOATING"}
    for route in _ip("-4", "route", "show", "table", "all"):
        destination = route["dst"]
        if destination == "default" or route.get("dev") == settings.device or route.get("type") in ("broadcast", "multicast"):
            continue
        taken = IPv4Network(destination, strict=False)
        if taken.prefixlen < 8:
            continue  # a default route in halves, as VPNs make it
        for network, variable in variables.items():
            if network.overlaps(taken):
                raise InputError(
                    f"{variable}: {network} clashes with this machine's route to {destination} on {route.get('dev', '?')}",
                    hint=f"set {variable} to a private network that is free, such as 10.177.0.0/24",
                )


def ensure(settings: Settings, machine: Machine) -> None:
    """Connect the machine: both ends of the pair, the external bridge, the route, NAT. Changes nothing that is right.

    Raises:
        GridsteadError: this machine cannot.
    """
    # Loaded by the kernel on demand on most machines, but not from a namespace.
    for module in ("veth", "bridge", "br_netfilter", "tun", "iptable_nat"):
        with contextlib.suppress(CommandError):
            run(["modprobe", "--quiet", module])
    prefix = settings.network.prefixlen
    if not Path(f"/sys/class/net/{settings.device}").exists():
        pid = str(machine.pid)
        try:
            run(["ip", "link", "add", settings.device, "type", "veth", "peer", "name", INSIDE, "netns", pid])
        except CommandError as error:
            raise GridsteadError(f"the kernel makes no veth pair: {error.stderr}") from None
    # Each of these says the wanted state and may be said again.
    run(["ip", "address", "replace", f"{settings.host_address}/{prefix}", "dev", settings.device])
    run(["ip", "link", "set", settings.device, "up"])
    machine.network(
        ["link", "set", "lo", "up"],
        ["address", "replace", f"{settings.address}/{prefix}", "dev", INSIDE],
        ["link", "set", INSIDE, "up"],
        ["route", "replace", "default", "via", str(settings.host_address)],
    )
    if BRIDGE not in machine.inside(["ip", "-brief", "link", "show", "type", "bridge"]):
        machine.network(["link", "add", BRIDGE, "type", "bridge"])
    machine.network(
        ["address", "replace", f"{settings.gateway}/{settings.floating.prefixlen}", "dev", BRIDGE], ["link", "set", BRIDGE, "up"]
    )
    machine.inside(["sysctl", "--quiet", "net.ipv4.ip_forward=1"])
    run(["ip", "route", "replace", str(settings.floating), "via", str(settings.address), "dev", settings.device])
    _ensure_nat(settings)


def _rules(settings: Settings) -> dict[tuple[str, str], list[list[str]]]:
    """Per (table, built-in chain): the rules of the cloud's own chain, which the built-in one jumps to."""
    device = settings.device
    return {
        ("nat", "POSTROUTING"): [
            ["-s", str(network), "!", "-o", device, "-j", "MASQUERADE"] for network in (settings.network, settings.floating)
        ],
        # For machines whose firewall forwards and takes nothing by default.
        ("filter", "FORWARD"): [["-i", device, "-j", "ACCEPT"], ["-o", device, "-j", "ACCEPT"]],
        ("filter", "INPUT"): [["-i", device, "-p", protocol, "--dport", "53", "-j", "ACCEPT"] for protocol in ("udp", "tcp")],
    }


def _iptables(*arguments: str) -> str:
    return run(["iptables", "--wait", "10", *arguments])


def _chain(settings: Settings, builtin: str) -> str:
    return f"{settings.device}-{builtin[:4].lower()}"


def _ensure_nat(settings: Settings) -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1\n")
    for (table, builtin), rules in _rules(settings).items():
        chain = _chain(settings, builtin)
        listed = _iptables("-t", table, "-S").splitlines()
        if f"-N {chain}" not in listed:
            _iptables("-t", table, "-N", chain)
        if len([line for line in listed if line.startswith(f"-A {chain} ")]) != len(rules):
            _iptables("-t", table, "-F", chain)
            for rule in rules:
                _iptables("-t", table, "-A", chain, *rule)
        # Last: a chain is used once it is complete.
        if f"-A {builtin} -j {chain}" not in listed:
            _iptables("-t", table, "-I", builtin, "-j", chain)


def remove(settings: Settings) -> None:
    """Take the host's side away: interface, route, rules. Forwarding stays on: others may count on it by now."""
    if Path(f"/sys/class/net/{settings.device}").exists():
        with contextlib.suppress(CommandError):  # it goes by itself with the machine, maybe at this moment
            run(["ip", "link", "delete", settings.device])
    for table, builtin in _rules(settings):
        chain = _chain(settings, builtin)
        listed = _iptables("-t", table, "-S").splitlines()
        for line in listed:
            if line == f"-A {builtin} -j {chain}":
                _iptables("-t", table, "-D", builtin, "-j", chain)
        if f"-N {chain}" in listed:
            _iptables("-t", table, "-F", chain)
            _iptables("-t", table, "-X", chain)


def answers(settings: Settings, port: int) -> bool:
    """Whether something listens at the cloud's address."""
    with contextlib.suppress(OSError), socket.create_connection((str(settings.address), port), timeout=2):
        return True
    return False

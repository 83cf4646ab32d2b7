"""Where the test cloud keeps its things, and which networks it uses."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from gridstead.cluster.errors import InputError

DEFAULT_DATA = Path("/var/lib/gridstead-cloud")
#: Both names are nova availability zones; `fake` makes servers that exist in the API only, `real` makes virtual machines.
ZONES = ("fake", "real")
REGION = "RegionOne"
#: nova-compute services of the fake zone. More than two, so that server groups with anti-affinity can be tested.
FAKE_HOSTS = ("fake1", "fake2", "fake3")
REAL_HOST = "real1"


@dataclass(frozen=True)
class Settings:
    """One test cloud.

    Args:
        data: its directory.
        network: between this machine and the cloud; the APIs are at its second address, the DNS forwarder at its first.
        floating: the external network; floating addresses come from it.
    """

    data: Path
    network: IPv4Network
    floating: IPv4Network

    @classmethod
    def from_environment(cls) -> Settings:
        """The settings that GRIDSTEAD_CLOUD_* name.

        Raises:
            InputError: a value is none.
        """
        data = Path(os.environ.get("GRIDSTEAD_CLOUD_DATA") or DEFAULT_DATA)
        if not data.is_absolute():
            raise InputError(f"GRIDSTEAD_CLOUD_DATA={data}: not an absolute path", hint=f"right would be {DEFAULT_DATA}, say")
        network = _network("GRIDSTEAD_CLOUD_NETWORK", "10.77.0.0/24")
        floating = _network("GRIDSTEAD_CLOUD_FLOATING", "10.78.0.0/24")
        if network.overlaps(floating):
            raise InputError(f"GRIDSTEAD_CLOUD_NETWORK={network} and GRIDSTEAD_CLOUD_FLOATING={floating} overlap")
        return cls(data, network, floating)

    @property
    def host_address(self) -> IPv4Address:
        """This machine's end; DNS for guests answers here."""
        return self.network[1]

    @property
    def address(self) -> IPv4Address:
        """The cloud's end, where the APIs are."""
        return self.network[2]

    @property
    def gateway(self) -> IPv4Address:
        """The gateway of the external network."""
        return self.floating[1]

    @property
    def auth_url(self) -> str:
        """Keystone."""
        return f"http://{self.address}:5000/v3"

    @property
    def device(self) -> str:
        """The host's end of the veth pair; also the name of the iptables chains. Two clouds on one machine differ in it."""
        if self.data == DEFAULT_DATA:
            return "gridstead-os"
        return f"gsos-{hashlib.sha256(str(self.data).encode()).hexdigest()[:8]}"

    @property
    def roots(self) -> Path:
        """The cache of root file systems."""
        return self.data / "root"

    @property
    def template(self) -> Path:
        """The cache of initialised databases."""
        return self.data / "template"

    @property
    def state(self) -> Path:
        """What a running cloud writes; gone with `down`."""
        return self.data / "state"

    @property
    def logs(self) -> Path:
        """One file per service."""
        return self.state / "log"

    @property
    def clouds_yaml(self) -> Path:
        """What openstacksdk reads."""
        return self.data / "clouds.yaml"


def _network(variable: str, default: str) -> IPv4Network:
    value = os.environ.get(variable) or default
    try:
        network = IPv4Network(value)
    except ValueError as error:
        raise InputError(f"{variable}={value}: {error}", hint=f"right would be {default}, say") from None
    if network.prefixlen > 24:
        raise InputError(f"{variable}={value}: too small", hint="a /24 or larger is needed")
    return network

"""The services' configuration files, rendered anew into the root file system at each `up`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Any

import jinja2

from cloud import network
from cloud.services import SERVICES
from cloud.settings import FAKE_HOSTS, REAL_HOST, REGION, Settings
from gridstead.cluster.host import Host

_TEMPLATES = Path(__file__).parent / "config"


@dataclass(frozen=True)
class File:
    """A file of the root file system and what it is made from.

    Args:
        target: where it goes.
        template: its template in config/, or the plain file itself.
        mode: its permissions.
        owner: who may read it, root or a user of the root file system.
        variables: further variables of the template.
    """

    target: str
    template: str
    mode: int = 0o600
    owner: str = "root"
    variables: tuple[tuple[str, Any], ...] = ()


FILES = (
    File("/etc/keystone/keystone.conf", "keystone.conf.j2"),
    File("/etc/glance/glance-api.conf", "glance-api.conf.j2"),
    File("/etc/placement/placement.conf", "placement.conf.j2"),
    File("/etc/nova/nova.conf", "nova.conf.j2", variables=(("with_databases", True),)),
    # nova-compute speaks to the conductor and must not see the databases.
    File("/etc/nova/nova-cpu.conf", "nova.conf.j2", variables=(("with_databases", False),)),
    File("/etc/nova/nova-real.conf", "nova-real.conf.j2"),
    *(File(f"/etc/nova/nova-{host}.conf", "nova-fake.conf.j2", variables=(("fake_host", host),)) for host in FAKE_HOSTS),
    File("/etc/neutron/neutron.conf", "neutron.conf.j2"),
    File("/etc/neutron/plugins/ml2/ml2_conf.ini", "ml2_conf.ini.j2"),
    File("/etc/neutron/plugins/ml2/linuxbridge_agent.ini", "linuxbridge_agent.ini.j2"),
    File("/etc/neutron/dhcp_agent.ini", "dhcp_agent.ini.j2"),
    File("/etc/neutron/l3_agent.ini", "l3_agent.ini.j2"),
    File("/etc/neutron/metadata_agent.ini", "metadata_agent.ini.j2"),
    File("/etc/cinder/cinder.conf", "cinder.conf.j2"),
    File("/etc/cinder/nfs_shares", "nfs_shares"),
    File("/etc/mysql/mariadb.conf.d/99-gridstead.cnf", "mariadb.cnf.j2", 0o644),
    File("/etc/rabbitmq/rabbitmq.conf", "rabbitmq.conf.j2", owner="rabbitmq"),
    File("/etc/rabbitmq/rabbitmq-env.conf", "rabbitmq-env.conf.j2", 0o644),
    File("/etc/libvirt/libvirtd.conf", "libvirtd.conf.j2"),
    File("/etc/libvirt/qemu.conf", "qemu.conf.j2"),
    File("/etc/hosts", "hosts.j2", 0o644),
    File("/etc/gridstead/dnsmasq.conf", "dnsmasq.conf.j2"),
    File("/etc/gridstead/supervisord.conf", "supervisord.conf.j2"),
    File("/usr/local/sbin/gridstead-fake-l2-agent", "fake_l2_agent.py", 0o755),
    # The package's own is replaced: this is where mount(8) looks.
    File("/usr/sbin/mount.nfs", "mount.nfs", 0o755),
)


def render(settings: Settings, root: Path, passwords: dict[str, str]) -> None:
    """Write every configuration file; one that is right already is not touched.

    Args:
        settings: of the cloud.
        root: its root file system.
        passwords: by name.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  (INI files, not HTML)
    )
    common = {
        "address": settings.address,
        "host_address": settings.host_address,
        "device": settings.device,
        "auth_url": settings.auth_url,
        "bridge": network.BRIDGE,
        "region": REGION,
        "real_host": REAL_HOST,
        "kvm": Host().kvm,
        "passwords": passwords,
        "services": SERVICES,
    }
    for file in FILES:
        if file.template.endswith(".j2"):
            text = environment.get_template(file.template).render(common, **dict(file.variables))
        else:
            text = (_TEMPLATES / file.template).read_text()
        _write(root, file, text)
    resolver = File("/etc/gridstead/resolv.conf", "", 0o644)
    names = File("/etc/gridstead/host-names", "", 0o644)
    own = File("/etc/resolv.conf", "", 0o644)
    for file, text in {resolver: _resolvers(), names: _host_names(), own: f"nameserver {settings.host_address}\n"}.items():
        _write(root, file, text)


def _write(root: Path, file: File, text: str) -> None:
    path = root / file.target.lstrip("/")
    uid, gid = _owner(root, file.owner)
    if path.is_file() and not path.is_symlink():
        seen = path.stat()
        if path.read_bytes() == text.encode() and (seen.st_mode & 0o777, seen.st_uid) == (file.mode, uid):
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.new")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text)
    os.chown(partial, uid, gid)
    partial.chmod(file.mode)
    partial.replace(path)


def _owner(root: Path, name: str) -> tuple[int, int]:
    for line in (root / "etc/passwd").read_text().splitlines():
        fields = line.split(":")
        if fields[0] == name:
            return int(fields[2]), int(fields[3])
    raise LookupError(f"no user {name} in {root}/etc/passwd")


def _resolvers() -> str:
    """Whom this machine asks for names; the forwarder runs in this machine's network, so its own loopback counts too."""
    try:
        text = Path("/etc/resolv.conf").read_text()
    except OSError:
        return ""
    return "".join(f"{line}\n" for line in text.splitlines() if re.match(r"\s*nameserver\s", line))


def _host_names() -> str:
    """What this machine's /etc/hosts says of other machines."""
    kept = []
    for line in Path("/etc/hosts").read_text().splitlines() if Path("/etc/hosts").exists() else []:
        words = line.partition("#")[0].split()
        try:
            if len(words) > 1 and not IPv4Address(words[0]).is_loopback:
                kept.append(" ".join(words))
        except AddressValueError:
            continue  # IPv6, which the cloud has none of
    return "".join(f"{line}\n" for line in kept)

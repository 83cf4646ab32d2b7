"""The test cloud's parts that need no cloud: settings, configuration files, the table of services, the check of networks."""

from __future__ import annotations

import configparser
import json
import stat
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from cloud import config, network, passwords, seed
from cloud.services import SERVICES
from cloud.settings import DEFAULT_DATA, Settings
from gridstead.cluster.errors import InputError
from gridstead.cluster.host import Host


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path, IPv4Network("10.77.0.0/24"), IPv4Network("10.78.0.0/24"))


@pytest.fixture
def tree(settings: Settings) -> Path:
    """A root file system with the users that own configuration files."""
    root = settings.data / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nrabbitmq:x:0:0::/var/lib/rabbitmq:/bin/sh\n")
    return root


@pytest.fixture
def secret(settings: Settings) -> dict[str, str]:
    return passwords.ensure(settings.data)


def parsed(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None, default_section="none of them")
    parser.read_string(path.read_text())
    return parser


def test_passwords_are_minted_once_private_and_all_different(settings: Settings, secret: dict[str, str]) -> None:
    assert passwords.ensure(settings.data) == secret
    assert len(set(secret.values())) == len(secret)
    assert all(len(value) >= 32 for value in secret.values())
    assert stat.S_IMODE((settings.data / "passwords.json").stat().st_mode) == 0o600


def test_what_holds_a_password_is_not_readable_by_others(settings: Settings, tree: Path, secret: dict[str, str]) -> None:
    config.render(settings, tree, secret)
    telling = []
    for path in tree.rglob("*"):
        if path.is_file() and any(value in path.read_text() for value in secret.values()):
            telling.append(path.name)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert {"nova.conf", "neutron.conf", "cinder.conf", "glance-api.conf", "keystone.conf", "rabbitmq.conf"} <= set(telling)


def test_rendering_again_touches_nothing_and_mends_what_was_changed(settings: Settings, tree: Path, secret: dict[str, str]) -> None:
    config.render(settings, tree, secret)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in tree.rglob("*") if path.is_file()}
    config.render(settings, tree, secret)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in before} == before
    changed, loose = tree / "etc/nova/nova.conf", tree / "etc/cinder/cinder.conf"
    text = changed.read_text()
    changed.write_text("[DEFAULT]\n")
    loose.chmod(0o644)
    config.render(settings, tree, secret)
    assert changed.read_text() == text
    assert stat.S_IMODE(loose.stat().st_mode) == 0o600


def test_nova_compute_cannot_reach_the_databases(settings: Settings, tree: Path, secret: dict[str, str]) -> None:
    config.render(settings, tree, secret)
    assert "api_database" in parsed(tree / "etc/nova/nova.conf")
    compute = tree / "etc/nova/nova-cpu.conf"
    assert not {"database", "api_database"} & set(parsed(compute).sections())
    assert "mysql" not in compute.read_text()


def test_quotas_are_finite(settings: Settings, tree: Path, secret: dict[str, str]) -> None:
    config.render(settings, tree, secret)
    nova, neutron, cinder = (parsed(tree / "etc" / name) for name in ("nova/nova.conf", "neutron/neutron.conf", "cinder/cinder.conf"))
    limits = [
        *nova["quota"].items(),
        *neutron["quotas"].items(),
        *((key, cinder["DEFAULT"][key]) for key in ("quota_volumes", "quota_gigabytes")),
    ]
    assert len(limits) == 15
    assert all(int(value) > 0 for _, value in limits), limits


@pytest.mark.parametrize("works", [True, False])
def test_kvm_is_used_where_it_works(
    settings: Settings, tree: Path, secret: dict[str, str], monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    monkeypatch.setattr(Host, "kvm", works)
    config.render(settings, tree, secret)
    libvirt = parsed(tree / "etc/nova/nova-real.conf")["libvirt"]
    assert (libvirt["virt_type"], libvirt["cpu_mode"]) == (("kvm", "host-passthrough") if works else ("qemu", "custom"))


def test_every_file_a_service_reads_is_rendered_and_every_service_supervised(
    settings: Settings, tree: Path, secret: dict[str, str]
) -> None:
    config.render(settings, tree, secret)
    for service in SERVICES:
        for file in service.files:
            assert (tree / file.lstrip("/")).is_file(), f"{service.name} reads {file}"
    supervised = parsed(tree / "etc/gridstead/supervisord.conf").sections()
    assert [name.partition(":")[2] for name in supervised if name.startswith("program:")] == [service.name for service in SERVICES]
    ports = [service.port for service in SERVICES if service.port]
    assert len(set(ports)) == len(ports)


def test_clouds_yaml_names_member_and_administrator(settings: Settings, secret: dict[str, str]) -> None:
    clouds = seed.clouds(settings, secret)["clouds"]
    assert {name: entry["auth"]["project_name"] for name, entry in clouds.items()} == {
        "gridstead-test": "gridstead",
        "gridstead-test-admin": "admin",
    }
    assert all(entry["auth"]["auth_url"] == "http://10.77.0.2:5000/v3" for entry in clouds.values())


def test_two_clouds_differ_in_their_device(settings: Settings) -> None:
    default = Settings(DEFAULT_DATA, settings.network, settings.floating)
    assert settings.device != default.device
    assert max(len(settings.device), len(default.device)) <= 15, "the kernel's limit for an interface's name"


def _routes(*routes: dict[str, str]) -> Callable[..., str]:
    def run(argv: list[str], **_: Any) -> str:
        assert argv[:2] == ["ip", "-json"]
        return json.dumps(routes)

    return run


@pytest.mark.parametrize(
    ("route", "variable"),
    [
        ({"dst": "10.77.0.0/24", "dev": "eth1"}, "GRIDSTEAD_CLOUD_NETWORK"),
        ({"dst": "10.78.0.128/25", "dev": "eth1"}, "GRIDSTEAD_CLOUD_FLOATING"),
        ({"dst": "10.0.0.0/8", "dev": "tun0"}, "GRIDSTEAD_CLOUD_NETWORK"),
        ({"dst": "10.77.0.9", "dev": "eth1", "type": "local"}, "GRIDSTEAD_CLOUD_NETWORK"),
    ],
)
def test_a_network_that_is_in_use_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, route: dict[str, str], variable: str
) -> None:
    monkeypatch.setattr(network, "run", _routes({"dst": "default", "dev": "eth0"}, route))
    with pytest.raises(InputError) as raised:
        network.check(settings)
    assert str(raised.value).startswith(f"{variable}: ")
    assert route["dst"] in str(raised.value)


def test_the_clouds_own_routes_and_others_are_no_clash(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"dst": "10.78.0.0/24", "dev": settings.device}
    monkeypatch.setattr(
        network,
        "run",
        _routes({"dst": "default", "dev": "eth0"}, {"dst": "0.0.0.0/1", "dev": "tun0"}, own, {"dst": "192.0.2.0/24", "dev": "eth0"}),
    )
    network.check(settings)

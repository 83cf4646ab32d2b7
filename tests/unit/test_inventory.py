"""The inventory, ssh's view of it, and the network it stands on."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridstead.cluster import inventory, secrets
from gridstead.cluster.errors import InputError, PreflightError
from gridstead.cluster.paths import ROOT, SitePaths
from gridstead.cluster.providers import subnet
from gridstead.cluster.providers.base import Device, NodeAccess
from gridstead.cluster.services import SERVICES
from gridstead.cluster.spec import Cluster

SPEC = Cluster.model_validate(
    {
        "name": "trial",
        "extra_services": ["squid"],
        "nodes": {
            "frontend": {"count": 1, "services": ["nfs_server", "slurm_controller", "squid"]},
            "compute": {
                "count": 2,
                "flavor": {"cpus": 4, "memory": 512},
                "services": ["nfs_client", "slurm_node"],
                "volumes": [{"name": "scratch", "size": "1G", "mount": "/scratch", "mode": "1777"}],
            },
        },
    }
)


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SitePaths:
    # A blank in a path must survive ssh's and the shell's reading of it.
    monkeypatch.setenv("GRIDSTEAD_STATE", str(tmp_path / "my state"))
    return SitePaths(tmp_path / "cluster.yml", "trial")


def access(number: int, **more: object) -> NodeAccess:
    return NodeAccess(f"10.70.0.{number}", f"10.70.0.{number}", **more)  # type: ignore[arg-type]


@pytest.fixture
def nodes() -> dict[str, NodeAccess]:
    return {
        "frontend001": access(11),
        "compute001": access(
            12, volumes={"scratch": Device(("/dev/disk/by-id/x-compute001-scratch",), "ab-cd")}, variables={"gridstead_container": True}
        ),
        "compute002": access(13, user="debian", ssh_options=("-o", "ProxyJump=gate.grid.test")),
    }


def test_groups_are_kinds_and_services(paths: SitePaths, nodes: dict[str, NodeAccess]) -> None:
    listing = inventory.build(SPEC, paths, nodes)
    json.dumps(listing)
    assert listing["compute"]["hosts"] == ["compute001", "compute002"]
    assert listing["slurm_node"]["hosts"] == ["compute001", "compute002"]
    assert listing["slurm_controller"]["hosts"] == ["frontend001"]
    assert listing["squid"]["hosts"] == ["frontend001"]
    assert listing["arc_ce"]["hosts"] == [], "a group without a node is there, so that plays need no conditions"
    assert set(listing) == {"all", "_meta", "frontend", "compute", "squid", *SERVICES}
    assert set(listing["all"]["children"]) == set(listing) - {"all", "_meta"}


def test_variables_are_the_contract_with_the_roles(paths: SitePaths, nodes: dict[str, NodeAccess]) -> None:
    listing = inventory.build(SPEC, paths, nodes)
    shared, one, two = listing["all"]["vars"], *(listing["_meta"]["hostvars"][node] for node in ("compute001", "compute002"))
    assert (shared["gridstead_cluster"], shared["gridstead_domain"], shared["gridstead_provider"]) == ("trial", "grid.test", "podman")
    assert shared["gridstead_secrets"] == str(paths.secrets)
    assert one["gridstead_flavor"] == {"cpus": 4, "memory": 512}
    assert one["gridstead_address"] == one["ansible_host"] == "10.70.0.12"
    assert one["gridstead_container"] is True
    assert one["gridstead_volumes"] == [
        {
            "name": "scratch",
            "device": "/dev/disk/by-id/x-compute001-scratch",
            "uuid": "ab-cd",
            "format": True,
            "filesystem": "ext4",
            "mount": "/scratch",
            "owner": "root",
            "group": "root",
            "mode": "1777",
        }
    ]
    assert two["gridstead_volumes"] == [], "a volume that is not attached is none to mount"
    assert (one["ansible_user"], one["ansible_become"]) == ("root", False)
    assert (two["ansible_user"], two["ansible_become"]) == ("debian", True)


def test_a_node_whose_kind_is_no_longer_declared_is_left_out(paths: SitePaths, nodes: dict[str, NodeAccess]) -> None:
    listing = inventory.build(SPEC, paths, {**nodes, "gpu001": access(20)})
    assert "gpu001" not in listing["_meta"]["hostvars"]


def test_no_secret_is_in_the_inventory(paths: SitePaths, nodes: dict[str, NodeAccess]) -> None:
    secrets.ensure(paths)
    text = json.dumps(inventory.build(SPEC, paths, nodes))
    assert "PRIVATE KEY" not in text
    for line in paths.ssh_key.read_text().splitlines()[1:-1]:
        assert line not in text


def ssh_settings(*arguments: str) -> dict[str, str]:
    """How ssh itself understands a command line (ssh -G connects nowhere)."""
    done = subprocess.run(["ssh", "-G", *arguments], capture_output=True, text=True, check=True)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)


def test_ssh_takes_the_clusters_keys_and_nobody_elses(paths: SitePaths, nodes: dict[str, NodeAccess]) -> None:
    secrets.ensure(paths)  # ssh forgets a key file that is not there
    argv = inventory.ssh_argv(paths, nodes["compute001"])
    got = ssh_settings(*argv[1:])
    assert got["hostname"] == "10.70.0.12"
    assert got["user"] == "root"
    assert got["stricthostkeychecking"] == "true"
    assert got["identitiesonly"] == "yes"
    assert got["batchmode"] == "yes"
    assert Path(got["identityfile"].strip('"')) == paths.ssh_key
    assert got["globalknownhostsfile"] == "/dev/null"


def test_ansibles_options_hold_what_the_command_line_holds(paths: SitePaths, nodes: dict[str, NodeAccess]) -> None:
    variables = inventory.host_variables(SPEC, paths, "compute002", nodes["compute002"])
    got = ssh_settings("-F", "/dev/null", *shlex.split(variables["ansible_ssh_common_args"]), "10.70.0.13")
    assert got["stricthostkeychecking"] == "true"
    assert got["proxyjump"] == "gate.grid.test"


def test_ssh_reads_the_written_configuration(paths: SitePaths, nodes: dict[str, NodeAccess], tmp_path: Path) -> None:
    written = tmp_path / "ssh_config"
    written.write_text(inventory.ssh_config(SPEC, paths, nodes))
    for name in ("compute002", "compute002.grid.test"):
        got = ssh_settings("-F", str(written), name)
        assert (got["hostname"], got["user"], got["proxyjump"]) == ("10.70.0.13", "debian", "gate.grid.test")
        assert Path(got["identityfile"].strip('"')) == paths.ssh_key


@pytest.mark.parametrize(
    ("name", "content", "taken"),
    [
        ("my.yml", "name: mine\nnodes: {compute: {count: 1}}\n", True),
        ("a site", "{name: mine, nodes: {compute: {count: 1}}}", True),
        ("cluster.yml", "not: [yaml", True),
        ("hosts.yml", "all: {hosts: {one: {}, two: {}}}\n", False),
        ("my.yml", "name: mine\n", False),
        ("my.yml", "not: [yaml", False),
        ("hosts", "[compute]\none\n", False),
    ],
)
def test_the_inventory_plugin_knows_a_declaration_by_what_it_says(tmp_path: Path, name: str, content: str, taken: bool) -> None:
    (tmp_path / name).write_text(content)
    # In a process of its own: the plugin is loaded by Ansible, not by this package.
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tools/ansible/inventory')!r});"
        f"from gridstead import InventoryModule; print(InventoryModule().verify_file({str(tmp_path / name)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == str(taken)


# ---------------------------------------------------------------------------------------------- networks

networks = st.builds(
    lambda address, prefix: IPv4Network((address & (0xFFFFFFFF << (32 - prefix)), prefix)),
    st.integers(int(IPv4Address("10.0.0.0")), int(IPv4Address("10.255.255.255"))),
    st.integers(12, 32),
)


@given(st.text(min_size=1, max_size=8), st.dictionaries(networks, st.just("something"), max_size=12))
def test_the_chosen_network_clashes_with_nothing(name: str, taken: dict[IPv4Network, str]) -> None:
    chosen = subnet.choose(name, taken)
    assert chosen.prefixlen == 24
    assert chosen.is_private
    assert not any(chosen.overlaps(other) for other in taken)
    subnet.check(chosen, taken)


@given(st.text(min_size=1, max_size=8))
def test_a_name_gets_the_same_network_every_time(name: str) -> None:
    assert subnet.choose(name, {}) == subnet.choose(name, {IPv4Network("192.168.0.0/16"): "elsewhere"})


def test_another_cluster_finds_another_network() -> None:
    first = subnet.choose("local", {})
    assert not subnet.choose("local", {first: "network gridstead-local"}).overlaps(first)


def test_a_full_pool_is_one_clear_error() -> None:
    with pytest.raises(PreflightError, match="no free network") as caught:
        subnet.choose("x", {IPv4Network("10.0.0.0/8"): "a VPN"})
    assert "cidr" in str(caught.value)


def test_a_declared_network_that_clashes_names_what_is_in_the_way() -> None:
    taken = {IPv4Network("10.88.0.0/16"): "route to 10.88.0.0/16 on podman0"}
    with pytest.raises(InputError, match=r"10\.88\.3\.0/24 clashes with 10\.88\.0\.0/16.*podman0"):
        subnet.check(IPv4Network("10.88.3.0/24"), taken)
    subnet.check(IPv4Network("10.89.3.0/24"), {**taken, IPv4Network("0.0.0.0/0"): "the default route"})


@given(st.integers(24, 28), st.lists(st.integers(1, 40), unique=True, max_size=12), st.sets(st.integers(2, 14), max_size=6))
def test_addresses_are_kept_unique_and_inside(prefix: int, numbers: list[int], used: set[int]) -> None:
    network = IPv4Network(f"10.70.0.0/{prefix}")
    names = [f"compute{number:03d}" for number in numbers]
    present = {name: f"10.70.0.{last}" for name, last in zip(names[::2], sorted(used), strict=False)}
    try:
        chosen = subnet.addresses(network, names, present)
    except InputError as error:
        assert "too small" in str(error)  # noqa: PT017 - most draws fit; this asserts how the others are refused
        assert len(names) + len(present) > network.num_addresses - 13
        return
    assert list(chosen) == names
    assert len(set(chosen.values())) == len(names)
    for name, address in chosen.items():
        assert IPv4Address(address) in network
        assert address not in {str(network.network_address), str(network.broadcast_address), "10.70.0.1"}
        assert present.get(name, address) == address, "a node's address changed under it"


def test_a_leaving_nodes_address_is_not_given_away_yet() -> None:
    chosen = subnet.addresses(IPv4Network("10.70.0.0/24"), ["b"], {"a": "10.70.0.11"})
    assert chosen == {"b": "10.70.0.12"}

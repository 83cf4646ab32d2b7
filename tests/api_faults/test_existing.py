"""What the project has already: a network, a router, volumes. A cluster uses it, and leaves it as it was."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from gridstead.cluster.errors import GridsteadError
from project import inventory, looked_at
from support import cluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def mine(member: Any) -> Iterator[dict[str, Any]]:
    """A network with a subnet, and a router to the outside that is connected to it."""
    made: dict[str, Any] = {}
    try:
        made["network"] = member.network.create_network(name="mine")
        subnet = {"cidr": "10.55.0.0/24", "enable_dhcp": False, "ip_version": 4}
        made["subnet"] = member.network.create_subnet(network_id=made["network"].id, name="mine-v4", **subnet)
        outside = member.network.find_network("public").id
        made["router"] = member.network.create_router(name="mine", external_gateway_info={"network_id": outside})
        member.network.add_interface_to_router(made["router"], subnet=made["subnet"].id)
        yield made
    finally:
        if "router" in made:
            if "subnet" in made:
                member.network.remove_interface_from_router(made["router"], subnet=made["subnet"].id)
            member.network.delete_router(made["router"])
        if "network" in made:
            member.network.delete_network(made["network"])


@pytest.mark.usefixtures("mine")
def test_in_a_network_that_is_there(small: Path, member: Any) -> None:
    before = inventory(member)
    declared = small.read_text()
    small.write_text(declared + "network: {name: mine}\n")
    cluster("up", "--site", small, "--no-wait")
    after = inventory(member)
    assert {kind: len(after[kind] - before[kind]) for kind in ("networks", "subnets", "routers")} == dict.fromkeys(
        ("networks", "subnets", "routers"), 0
    )
    for server in member.compute.servers():
        assert list(server.addresses) == ["mine"]
        assert all(one["addr"].startswith("10.55.0.") for one in server.addresses["mine"] if one["OS-EXT-IPS:type"] == "fixed")
    assert len(after["floating addresses"] - before["floating addresses"]) == 1
    small.write_text(declared + "network: {name: mine, subnet: mine-v4}\n")  # its only one: the same
    assert json.loads(cluster("plan", "--site", small, "--json").stdout) == []
    cluster("down", "--site", small, "--volumes", "--yes")
    assert inventory(member) == before


def test_behind_a_router_that_is_there(small: Path, member: Any, mine: dict[str, Any]) -> None:
    before = inventory(member)
    small.write_text(small.read_text() + "network: {router: mine}\n")
    cluster("up", "--site", small, "--no-wait")
    after = inventory(member)
    assert after["routers"] == before["routers"]
    assert len(after["networks"] - before["networks"]) == 1
    connected = {fixed["subnet_id"] for port in member.network.ports(device_id=mine["router"].id) for fixed in port.fixed_ips}
    assert after["subnets"] - before["subnets"] < connected
    assert json.loads(cluster("plan", "--site", small, "--json").stdout) == []
    cluster("down", "--site", small, "--volumes", "--yes")
    # With the connection of its own subnet gone, and the other one there.
    assert inventory(member) == before


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("{name: yours}", "networks: no 'yours'; there are: mine, public"),
        ("{name: mine, subnet: yours}", "network.subnet: name one subnet of mine; there are: "),
        ("{router: yours}", "routers: no 'yours'; there are: mine"),
    ],
)
@pytest.mark.usefixtures("mine")
def test_what_is_not_there(declared: Path, named: str, says: str) -> None:
    declared.write_text(declared.read_text() + f"network: {named}\n")
    with pytest.raises(GridsteadError) as error:
        looked_at(declared)
    assert error.value.exit_code == 1
    assert says in str(error.value)


def test_boot_from_a_volume_of_a_type(inner: Path, member: Any) -> None:
    before = inventory(member)
    text = inner.read_text().replace("{name: data, size: 1G,", "{name: data, type: nfs, size: 1G,")
    inner.write_text(text.replace("count: 1\n", "count: 1\n    root_volume: 2G\n"))
    cluster("up", "--site", inner, "--no-wait")
    volumes = {volume.id: volume for volume in member.block_storage.volumes() if volume.id not in before["volumes"]}
    server = next(one for one in member.compute.servers() if one.metadata["gridstead.name"] == "server001")
    attached = [volumes[one["id"]] for one in server.attached_volumes]
    assert sorted((volume.size, volume.is_bootable, volume.volume_type) for volume in attached) == [(1, False, "nfs"), (2, True, "nfs")]
    assert not (server.image and server.image.id)
    assert json.loads(cluster("plan", "--site", inner, "--json").stdout) == []
    cluster("down", "--site", inner, "--volumes", "--yes")
    assert inventory(member) == before


def test_a_volume_of_someone_else(inner: Path, member: Any) -> None:
    """An existing volume is attached by its id; it is never deleted."""
    volume = member.block_storage.create_volume(name="mine", size=1)
    member.block_storage.wait_for_status(volume, "available", interval=1)
    try:
        inner.write_text(inner.read_text().replace("{name: data, size: 1G,", f"{{name: data, id: {volume.id}, size: 1G,"))
        cluster("up", "--site", inner, "--no-wait")
        hosts = json.loads(cluster("inventory", "--site", inner).stdout)["_meta"]["hostvars"]
        assert hosts["server001"]["gridstead_volumes"][0]["device"][0] == f"/dev/disk/by-id/virtio-{volume.id[:20]}"
        cluster("down", "--site", inner, "--volumes", "--yes")
        assert member.block_storage.get_volume(volume.id).status == "available"
    finally:
        cluster("down", "--site", inner, "--volumes", "--yes")
        member.block_storage.delete_volume(volume.id)
        member.block_storage.wait_for_delete(volume, interval=1)


def test_of_two_volumes_with_one_mark_the_one_in_use_stays_it(inner: Path, member: Any) -> None:
    """What a creation leaves whose answer a gateway lost: an older, blank volume with the same mark."""
    twin = member.block_storage.create_volume(name="twin", size=1)
    member.block_storage.wait_for_status(twin, "available", interval=1)
    cluster("up", "--site", inner, "--no-wait")
    used = next(one for one in member.block_storage.volumes() if one.metadata.get("gridstead.name") == "server001-data")
    member.block_storage.set_volume_metadata(twin, **used.metadata)
    assert json.loads(cluster("plan", "--site", inner, "--json").stdout) == []
    cluster("up", "--site", inner, "--no-wait", "--replace", "server001")
    server = next(one for one in member.compute.servers() if one.metadata["gridstead.name"] == "server001")
    assert [one["id"] for one in server.attached_volumes] == [used.id]
    # Once nobody has either, nobody can tell them apart.
    cluster("down", "--site", inner)
    done = cluster("up", "--site", inner, "--no-wait", check=False)
    assert done.returncode == 1
    assert "volume server001-data is there 2 times" in done.stderr
    assert used.id in done.stderr
    assert twin.id in done.stderr
    assert "✓" not in done.stderr
    cluster("down", "--site", inner, "--volumes", "--yes")
    assert not [one for one in member.block_storage.volumes() if one.metadata.get("gridstead.name") == "server001-data"]


def test_anothers_cluster_in_the_same_project(inner: Path, member: Any, tmp_path: Path) -> None:
    """Two people, one project, one declared name."""
    cluster("up", "--site", inner, "--no-wait")
    before = inventory(member)
    elsewhere = {"GRIDSTEAD_STATE": str(tmp_path / "elsewhere")}
    for command in (["up", "--no-wait"], ["down"], ["down", "--volumes", "--yes"], ["stop"]):
        done = cluster(*command, "--site", inner, check=False, env=elsewhere)
        assert done.returncode == 2, done.stderr
        assert "belongs to " in done.stderr
    assert inventory(member) == before
    cluster("up", "--site", inner, "--no-wait", "--adopt", env=elsewhere)
    assert inventory(member) == before
    done = cluster("up", "--site", inner, "--no-wait", check=False)
    assert done.returncode == 2, done.stderr
    cluster("up", "--site", inner, "--no-wait", "--adopt")
    assert json.loads(cluster("plan", "--site", inner, "--json").stdout) == []

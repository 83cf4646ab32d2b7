"""What happens to a cluster that is up: one thing of it breaks, and is told and mended alone. They share one; each leaves it whole, or `standing` mends it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from cloud.faulty import Delay, FaultyCloud
from project import INNER
from support import cluster, until

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def _standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    spec = tmp_path_factory.mktemp("standing") / "cluster.yml"
    spec.write_text(INNER)
    yield spec
    spec.write_text(INNER)
    cluster("--site", spec, "down", "--volumes", "--yes")


@pytest.fixture
def standing(_standing: Path) -> Path:
    """The cluster.yml of a cluster that is up and whole, without a way in from outside."""
    _standing.write_text(INNER)
    if json.loads(cluster("plan", "--site", _standing, "--json").stdout):
        cluster("up", "--site", _standing, "--no-wait")
    return _standing


def test_as_many_list_calls_for_any_number_of_nodes(standing: Path, proxied: FaultyCloud) -> None:
    def calls() -> Counter[str]:
        proxied.proxy.forget()
        cluster("plan", "--site", standing, "--json", env={"OS_CLIENT_CONFIG_FILE": str(proxied.clouds_yaml)})
        return proxied.proxy.counts()

    # A service that describes itself slowly: threads that each asked for it would be seen.
    proxied.proxy.inject(Delay(0.5), service="compute", path=r"/v2\.1$", times=None)
    three = calls()
    assert three["GET compute/v2.1"] == 1
    standing.write_text(standing.read_text().replace("count: 2", "count: 6"))
    cluster("up", "--site", standing, "--no-wait", env={"OS_CLIENT_CONFIG_FILE": str(proxied.clouds_yaml)})
    assert calls() == three


def test_a_server_in_error_is_told_with_its_reason_and_rebooted(standing: Path, admin: Any, member: Any) -> None:
    """It ran, and may hold what nobody else has: it is not made anew for what nova says of it."""
    servers = {server.metadata["gridstead.name"]: server.id for server in member.compute.servers()}
    admin.compute.reset_server_state(servers["server001"], "error")
    planned = json.loads(cluster("plan", "--site", standing, "--json").stdout)
    assert [(step["action"], step["kind"], step["name"]) for step in planned] == [("reboot", "node", "server001")]
    assert "ERROR" in planned[0]["why"]
    done = json.loads(cluster("up", "--site", standing, "--no-wait", "--json").stdout)
    assert [(step["action"], step["name"]) for step in done["steps"]] == [("reboot", "server001")]
    assert {server.metadata["gridstead.name"]: server.id for server in member.compute.servers()} == servers
    assert {server.status for server in member.compute.servers()} == {"ACTIVE"}


def test_a_stuck_volume_is_told_and_left_alone(standing: Path, admin: Any, member: Any) -> None:
    volume = next(one for one in member.block_storage.volumes() if one.metadata.get("gridstead.name") == "server001-data")
    admin.block_storage.reset_volume_status(volume.id, "error", None, None)
    try:
        done = cluster("up", "--site", standing, "--no-wait", check=False)
        assert done.returncode == 1
        assert "volume server001-data" in done.stderr
        assert "error" in done.stderr
        assert volume.id in {one.id for one in member.block_storage.volumes()}
    finally:
        admin.block_storage.reset_volume_status(volume.id, "in-use", None, None)
    until("nothing to do", lambda: json.loads(cluster("plan", "--site", standing, "--json").stdout) == [], seconds=60)


def test_a_volume_that_the_cloud_makes_no_larger_while_it_is_attached(standing: Path, member: Any) -> None:
    """The test cloud's NFS driver of cinder is one that does not."""

    def declare(size: str) -> None:
        standing.write_text(standing.read_text().replace("size: 1G, mount: /data", f"size: {size}, mount: /data"))

    def volume() -> Any:
        return next(one for one in member.block_storage.volumes() if one.metadata.get("gridstead.name") == "server001-data")

    made = volume()
    declare("2G")
    done = cluster("up", "--site", standing, "--no-wait", check=False)
    assert done.returncode == 1
    assert "error_extending" in done.stderr
    assert "up --replace NODE" in done.stderr
    # As it was declared before, it serves as before.
    standing.write_text(standing.read_text().replace("size: 2G", "size: 1G"))
    assert json.loads(cluster("plan", "--site", standing, "--json").stdout) == []
    declare("2G")
    cluster("up", "--site", standing, "--no-wait", "--replace", "server001")
    assert (volume().id, volume().size, volume().status) == (made.id, 2, "in-use")
    assert json.loads(cluster("plan", "--site", standing, "--json").stdout) == []
    # It is larger than the others declare it, and volumes never shrink.
    cluster("down", "--site", standing, "--volumes", "--yes")


def test_a_snapshot_is_left_alone_and_so_is_its_volume(standing: Path, member: Any) -> None:
    cluster("down", "--site", standing)
    volume = next(one for one in member.block_storage.volumes() if one.metadata.get("gridstead.name") == "server001-data")
    snapshot = member.block_storage.create_snapshot(name="mine", volume_id=volume.id)
    try:
        member.block_storage.wait_for_status(snapshot, "available", interval=1)
        done = cluster("down", "--site", standing, "--volumes", "--yes", check=False)
        assert done.returncode == 1
        assert "delete volume server001-data" in done.stderr
        assert "snapshot" in done.stderr
        assert "Traceback" not in done.stderr
        assert member.block_storage.get_snapshot(snapshot.id).status == "available"
        left = {one.metadata.get("gridstead.name") for one in member.block_storage.volumes()} - {None}
        assert left == {"server001-data"}
    finally:
        member.block_storage.delete_snapshot(snapshot.id)
        member.block_storage.wait_for_delete(snapshot, interval=1)

"""What the cloud does not have, or no longer has: quota, images, flavors, healthy servers and volumes."""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from gridstead.cluster import secrets
from gridstead.cluster.apply import apply
from gridstead.cluster.errors import StepError
from gridstead.cluster.progress import Progress
from gridstead.cluster.site import Site
from project import inventory
from support import CLUSTER, cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gridstead.cluster.plan import Plan


def refused(small: Path, *, code: int, says: list[str]) -> None:
    """`up` ends with one clear message and without a step."""
    done = cluster("up", "--site", small, "--no-wait", check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert [word for word in says if word not in done.stderr] == [], done.stderr
    assert "✓" not in done.stderr


@contextmanager
def quotas(
    admin: Any,
    member: Any,
    *,
    compute: dict[str, int] | None = None,
    volume: dict[str, int] | None = None,
    network: dict[str, int] | None = None,
) -> Iterator[None]:
    """Other quotas for a while."""
    project = member.current_project_id
    setters = {
        "compute": (admin.set_compute_quotas, admin.get_compute_quotas, compute),
        "volume": (admin.set_volume_quotas, admin.get_volume_quotas, volume),
        "network": (admin.set_network_quotas, admin.get_network_quotas, network),
    }
    before = {name: {key: read(project)[key] for key in wanted} for name, (_, read, wanted) in setters.items() if wanted}
    try:
        for put, _, wanted in setters.values():
            if wanted:
                put(project, **wanted)
        yield
    finally:
        for name, values in before.items():
            setters[name][0](project, **values)


def test_every_shortfall_in_one_message(small: Path, admin: Any, member: Any) -> None:
    before = inventory(member)
    small.write_text(small.read_text().replace("count: 2", "count: 5"))
    with quotas(admin, member, compute={"instances": 2, "cores": 3}, volume={"volumes": 1}, network={"floatingip": 0}):
        refused(
            small,
            code=1,
            says=[
                "quota of instances: 6 more needed",
                "quota of cores",
                "quota of volumes: 6",
                "quota of floating_ips",
                "nothing was made",
            ],
        )
    assert inventory(member) == before


def test_quota_that_ends_half_way(small: Path, admin: Any, member: Any) -> None:
    """Someone else takes what preflight saw as free."""
    cluster("plan", "--site", small)
    process = subprocess.Popen(
        [str(CLUSTER), "up", "--site", str(small), "--no-wait"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None, "stderr=PIPE makes it one"
    with process.stderr:
        first = next(line for line in process.stderr if "✓" in line)
        with quotas(admin, member, compute={"instances": 1}):
            told = first + process.stderr.read()
            code = process.wait(timeout=300)
    assert code == 1, told
    assert "uota" in told
    assert "Traceback" not in told
    cluster("up", "--site", small, "--no-wait")
    assert json.loads(cluster("plan", "--site", small, "--json").stdout) == []


@pytest.mark.parametrize(
    ("was", "becomes", "says"),
    [
        ("image: {name: fake}", "image: {name: no-such-image}", ["no image 'no-such-image'"]),
        ("flavor: {name: fake.small}", "flavor: {name: huge}", ["flavors: no 'huge'", "fake.small"]),
        ("flavor: {cpus: 1, memory: 512}", "flavor: {cpus: 900, memory: 512}", ["none with 900 cpus"]),
        ("availability_zone: fake", "availability_zone: mars", ["zones: no 'mars'", "fake"]),
        ("mount: /scratch,", "mount: /scratch, type: gold,", ["volume types: no 'gold'"]),
        ("image:", "network: {external: nowhere}\nimage:", ["external networks: no 'nowhere'", "public"]),
        ("image:", "network: {name: nowhere}\nimage:", ["networks: no 'nowhere'"]),
    ],
)
def test_names_the_cloud_does_not_know(declared: Path, was: str, becomes: str, says: list[str]) -> None:
    declared.write_text(declared.read_text().replace(was, becomes))
    refused(declared, code=1, says=says)


def test_an_unknown_cloud(declared: Path) -> None:
    declared.write_text(declared.read_text().replace("openstack: {", "openstack: {cloud: nimbus, "))
    refused(declared, code=2, says=["cluster.yml", "openstack.cloud", "nimbus", "clouds.yaml"])


def test_wrong_credentials(declared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clouds = yaml.safe_load(Path(os.environ["OS_CLIENT_CONFIG_FILE"]).read_text())
    clouds["clouds"][os.environ["OS_CLOUD"]]["auth"]["password"] = "not the password"  # noqa: S105 - a wrong one, on purpose
    config = tmp_path / "clouds.yaml"
    config.touch(mode=0o600)
    config.write_text(yaml.safe_dump(clouds))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(config))
    refused(declared, code=1, says=["refuses the credentials", "clouds.yaml"])


def looked_at(declared: Path) -> tuple[Site, Plan]:
    """A cluster that was planned and found possible, and that plan."""
    site = Site.open(declared, Progress(quiet=True))
    secrets.ensure(site.paths)
    plan, _ = site.plan()
    site.provider.preflight([step.resource for step in plan.steps if step.resource])
    return site, plan


def test_a_flavor_that_goes_between_plan_and_apply(inner: Path, admin: Any, member: Any) -> None:
    admin.compute.create_flavor(name="fleeting", ram=512, vcpus=1, disk=5)
    inner.write_text(inner.read_text().replace("fake.small", "fleeting"))
    site, _ = looked_at(inner)
    admin.compute.delete_flavor(admin.compute.find_flavor("fleeting"))
    # What the catalogue said a moment ago still counts: the time between a look and the deed is never nothing.
    with pytest.raises(StepError, match="server server001"):
        site.provision(wait=False)
    # Alone: the others are there.
    assert {server.metadata["gridstead.name"] for server in member.compute.servers()} == {"worker001", "worker002"}


def test_an_image_that_goes_between_plan_and_apply(inner: Path, admin: Any, member: Any) -> None:
    admin.image.create_image(name="fleeting", data=bytes(2**20), disk_format="raw", container_format="bare", visibility="public")
    inner.write_text(inner.read_text().replace("image: {name: fake}", "image: {name: fleeting}"))
    site, plan = looked_at(inner)
    admin.image.delete_image(admin.image.find_image("fleeting"))
    with pytest.raises(StepError, match="create node server001: no image 'fleeting'"):
        apply(plan, site.provider, site.progress)
    assert list(member.compute.servers()) == []
    # The same run again names what is missing, before anything.
    refused(inner, code=1, says=["no image 'fleeting'", "nothing was made"])


def test_a_server_in_error_is_told_with_its_reason_and_rebooted(inner: Path, admin: Any, member: Any) -> None:
    """It ran, and may hold what nobody else has: it is not made anew for what nova says of it."""
    cluster("up", "--site", inner, "--no-wait")
    servers = {server.metadata["gridstead.name"]: server.id for server in member.compute.servers()}
    admin.compute.reset_server_state(servers["server001"], "error")
    planned = json.loads(cluster("plan", "--site", inner, "--json").stdout)
    assert [(step["action"], step["kind"], step["name"]) for step in planned] == [("reboot", "node", "server001")]
    assert "ERROR" in planned[0]["why"]
    done = json.loads(cluster("up", "--site", inner, "--no-wait", "--json").stdout)
    assert [(step["action"], step["name"]) for step in done["steps"]] == [("reboot", "server001")]
    assert {server.metadata["gridstead.name"]: server.id for server in member.compute.servers()} == servers
    assert {server.status for server in member.compute.servers()} == {"ACTIVE"}


def test_a_server_that_no_host_takes(inner: Path, admin: Any, member: Any) -> None:
    """nova's own reason reaches the operator; the rest of the site is made."""
    admin.compute.create_flavor(name="outsize", ram=512, vcpus=40000, disk=5)
    try:
        inner.write_text(inner.read_text().replace("fake.small", "outsize"))
        with quotas(admin, member, compute={"cores": 1_000_000}):
            done = cluster("up", "--site", inner, "--no-wait", check=False)
    finally:
        admin.compute.delete_flavor(admin.compute.find_flavor("outsize"))
    assert done.returncode == 1
    assert "No valid host" in done.stderr
    assert "✓ create node worker001" in done.stderr
    # It never ran, so there is nothing to lose with it.
    inner.write_text(inner.read_text().replace("outsize", "fake.small"))
    planned = json.loads(cluster("plan", "--site", inner, "--json").stdout)
    assert ("replace", "server001") in [(step["action"], step["name"]) for step in planned]
    cluster("up", "--site", inner, "--no-wait")
    assert json.loads(cluster("plan", "--site", inner, "--json").stdout) == []


def test_a_stuck_volume_is_told_and_left_alone(inner: Path, admin: Any, member: Any) -> None:
    cluster("up", "--site", inner, "--no-wait")
    volume = next(one for one in member.block_storage.volumes() if one.metadata.get("gridstead.name") == "server001-data")
    admin.block_storage.reset_volume_status(volume.id, "error", None, None)
    try:
        done = cluster("up", "--site", inner, "--no-wait", check=False)
        assert done.returncode == 1
        assert "volume server001-data" in done.stderr
        assert "error" in done.stderr
        assert volume.id in {one.id for one in member.block_storage.volumes()}
    finally:
        admin.block_storage.reset_volume_status(volume.id, "in-use", None, None)
    for _ in range(20):
        if json.loads(cluster("plan", "--site", inner, "--json").stdout) == []:
            break
        time.sleep(1)
    cluster("up", "--site", inner, "--no-wait")


def test_a_volume_that_the_cloud_makes_no_larger_while_it_is_attached(inner: Path, member: Any) -> None:
    """The test cloud's NFS driver of cinder is one that does not."""

    def declare(size: str) -> None:
        inner.write_text(inner.read_text().replace("size: 1G, mount: /data", f"size: {size}, mount: /data"))

    def volume() -> Any:
        return next(one for one in member.block_storage.volumes() if one.metadata.get("gridstead.name") == "server001-data")

    cluster("up", "--site", inner, "--no-wait")
    made = volume()
    declare("2G")
    done = cluster("up", "--site", inner, "--no-wait", check=False)
    assert done.returncode == 1
    assert "error_extending" in done.stderr
    assert "up --replace NODE" in done.stderr
    # As it was declared before, it serves as before.
    inner.write_text(inner.read_text().replace("size: 2G", "size: 1G"))
    assert json.loads(cluster("plan", "--site", inner, "--json").stdout) == []
    declare("2G")
    cluster("up", "--site", inner, "--no-wait", "--replace", "server001")
    assert (volume().id, volume().size, volume().status) == (made.id, 2, "in-use")
    assert json.loads(cluster("plan", "--site", inner, "--json").stdout) == []

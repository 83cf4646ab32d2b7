"""What the cloud does not have, or no longer has: quota, images, flavors, healthy servers and volumes."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from gridstead.cluster.apply import apply
from gridstead.cluster.errors import GridsteadError, StepError
from gridstead.cluster.images import images_for
from project import inventory, looked_at
from support import CLUSTER, cluster, standing_still

if TYPE_CHECKING:
    from collections.abc import Iterator


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


def test_quota_that_ends_half_way(inner: Path, admin: Any, member: Any) -> None:
    """Someone else takes what preflight saw as free."""
    process = subprocess.Popen(
        [str(CLUSTER), "up", "--site", str(inner), "--no-wait"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None, "stderr=PIPE makes it one"
    with process.stderr, ExitStack() as taken:
        # The network's steps come before any server's.
        first = next(line for line in process.stderr if "✓" in line)
        with standing_still(process):
            taken.enter_context(quotas(admin, member, compute={"instances": 1}))
        told = first + process.stderr.read()
        code = process.wait(timeout=300)
    assert code == 1, told
    assert "uota" in told
    assert "Traceback" not in told
    cluster("up", "--site", inner, "--no-wait")
    assert json.loads(cluster("plan", "--site", inner, "--json").stdout) == []


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
    with pytest.raises(GridsteadError) as error:
        looked_at(declared)
    assert error.value.exit_code == 1
    assert [word for word in says if word not in str(error.value)] == [], str(error.value)


def test_such_a_name_is_told_as_any_other_refusal(declared: Path) -> None:
    """As the operator meets what the test above asks of the engine."""
    declared.write_text(declared.read_text().replace("image: {name: fake}", "image: {name: no-such-image}"))
    refused(declared, code=1, says=["no image 'no-such-image'"])


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
    made = admin.image.create_image(name="fleeting", data=bytes(2**20), disk_format="raw", container_format="bare", visibility="public")
    inner.write_text(inner.read_text().replace("image: {name: fake}", "image: {name: fleeting}"))
    site, plan = looked_at(inner)
    site.provider.image = images_for(site.spec, site.provider).ensure(site.progress)
    admin.image.delete_image(admin.image.find_image("fleeting"))
    with pytest.raises(StepError, match=f"create node server001: no image '{made.id}'"):
        apply(plan, site.provider, site.progress)
    assert list(member.compute.servers()) == []
    # The same run again names what is missing, before anything.
    refused(inner, code=1, says=["no image 'fleeting'", "nothing was made"])


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

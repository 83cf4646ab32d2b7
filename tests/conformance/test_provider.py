"""What every provider must do, whatever its cloud (--provider). See gridstead.cluster.providers.base.Provider."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from gridstead.cluster.errors import GridsteadError, InputError
from gridstead.cluster.inventory import ssh_argv
from gridstead.cluster.plan import Action, teardown
from gridstead.cluster.progress import Progress
from gridstead.cluster.resources import Key, Kind, Status
from gridstead.cluster.site import Site
from support import until

if TYPE_CHECKING:
    from pathlib import Path

DATA = "/dev/disk/by-id"


def on(site: Site, node: str, command: str) -> str:
    """Run a command on a node over ssh; fails when it fails."""
    argv = [*ssh_argv(site.paths, site.access(node)), command]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{node}: {command}: exit {done.returncode}: {done.stderr}"
    return done.stdout.strip()


def answers(site: Site) -> bool:
    """Whether the nodes run something that can be asked."""
    return type(site) is Site


def ids(site: Site) -> dict[Key, str]:
    """The provider's own ids of all that has one."""
    return {key: found.id for key, found in site.provider.observe().items() if found.id}


def test_nothing_is_observed_before_anything_is_made(fresh: Site) -> None:
    assert not fresh.provider.observe()
    plan, _ = fresh.plan()
    assert {step.action for step in plan.steps} == {Action.CREATE}


def test_what_is_desired_becomes_what_is_observed(site: Site) -> None:
    observed = site.provider.observe()
    desired = site.provider.desired(observed)
    assert {resource.key for resource in desired} == set(observed)
    assert {found.status for found in observed.values()} == {Status.OK}
    assert not [resource.key for resource in desired if resource.differs(observed[resource.key].digest)]
    assert not site.plan()[0]


def test_a_second_run_makes_nothing_twice(site: Site) -> None:
    before = ids(site)
    for resource in site.provider.desired(site.provider.observe()):
        site.provider.ensure(resource)
    assert ids(site) == before


@pytest.mark.usefixtures("answering")
def test_nodes_answer_with_their_own_names_and_reach_each_other(site: Site) -> None:
    for node, access in site.nodes().items():
        assert on(site, node, "hostname -s") == node
        assert access.address in on(site, node, "hostname -I").split()
    assert on(site, "worker001", "getent hosts server001").split()[0] == site.access("server001").address
    on(site, "worker001", "ping -c1 -W5 worker002")


@pytest.mark.usefixtures("answering")
def test_a_volume_is_found_by_its_id_and_has_its_size(site: Site) -> None:
    device = site.access("server001").volumes["data"].paths[0]
    assert device.startswith(DATA)
    assert int(on(site, "server001", f"blockdev --getsize64 $(readlink -f {device})")) == 2**30


def test_a_volume_outlives_its_node(site: Site) -> None:
    device = site.access("server001").volumes["data"].paths[0]
    if answers(site):
        on(site, "server001", f"printf 'kept across nodes' > {device}")
    address = site.access("server001").address
    mine = {Key(Kind.NODE, "server001"), Key(Kind.ATTACHMENT, "server001-data")}
    others = {key: value for key, value in ids(site).items() if key not in mine}
    plan = site.provision(["server001"])
    steps = [f"{step.action} {step.key}" for step in plan.told()]
    assert steps[0] == "replace node server001"
    assert set(steps[1:]) <= {"replace attachment server001-data"}
    assert site.access("server001").address == address
    assert site.access("server001").volumes["data"].paths[0] == device
    assert {key: value for key, value in ids(site).items() if key not in mine} == others
    assert not site.plan()[0]
    if answers(site):
        assert on(site, "server001", f"head -c 17 {device}") == "kept across nodes"


def test_a_deleted_node_comes_back_alone(site: Site) -> None:
    before = ids(site)
    site.provider.delete(Key(Kind.NODE, "worker001"))
    site.provider.delete(Key(Kind.NODE, "worker001"))
    plan, _ = site.plan()
    assert [str(step) for step in plan.steps] == ["create node worker001"]
    site.provision()
    after = ids(site)
    changed = {key.name for key in before if before[key] != after[key]}
    assert changed == {"worker001"}


def test_stopped_nodes_start_again_as_they_were(site: Site) -> None:
    before = ids(site)
    addresses = {node: access.address for node, access in site.nodes().items()}
    if answers(site):
        on(site, "worker001", "touch /root/still-here && sync")
    site.stop()
    assert {found.status for found in site.provider.observe().of(Kind.NODE).values()} == {Status.STOPPED}
    plan, _ = site.plan()
    assert set(plan.of(Action.START, Kind.NODE)) == set(addresses)
    site.provision()
    assert ids(site) == before
    assert {node: access.address for node, access in site.nodes().items()} == addresses
    if answers(site):
        on(site, "worker001", "test -e /root/still-here")


@pytest.mark.usefixtures("answering")
def test_a_node_reboots_by_itself(site: Site) -> None:
    boot = "stat -c %Z /proc/1"
    before = on(site, "worker001", boot)
    subprocess.run([*ssh_argv(site.paths, site.access("worker001")), "systemctl reboot"], timeout=60, check=False, capture_output=True)

    def booted() -> str:
        try:
            return on(site, "worker001", boot)
        except (AssertionError, subprocess.TimeoutExpired):
            return ""

    until("worker001 to come back from a reboot", lambda: booted() not in ("", before), seconds=120)


def test_the_provider_reboots_a_node(site: Site) -> None:
    site.provision()
    before = ids(site)
    boot = "stat -c %Z /proc/1"
    booted = on(site, "worker001", boot) if answers(site) else ""
    site.provider.reboot("worker001")
    assert ids(site) == before
    assert site.provider.observe()[Key(Kind.NODE, "worker001")].status is Status.OK
    if answers(site):
        site.provision()
        assert on(site, "worker001", boot) != booted


@pytest.mark.usefixtures("answering")
def test_a_volume_that_is_no_longer_declared_is_unmounted_before_it_is_taken(fresh: Site) -> None:
    site = fresh
    site.provision()
    device = site.access("server001").volumes["data"].paths[0]
    on(site, "server001", f"mkfs.ext4 -q {device} && mkdir -p /data && mount {device} /data && echo kept > /data/file")
    spec = site.paths.spec
    declared = spec.read_text()
    spec.write_text(re.sub(r"    volumes:\n.*\n", "", declared))
    without = type(site).open(spec, Progress(quiet=True))
    busy = subprocess.Popen([*ssh_argv(site.paths, site.access("server001")), "cd /data; exec sleep 600"], stdin=subprocess.DEVNULL)
    until("the volume to be used", lambda: on(site, "server001", "ls -l /proc/[0-9]*/cwd | grep ' /data$' || true"))
    with pytest.raises(GridsteadError, match=r"volume server001-data cannot be taken from server001: .*busy"):
        without.provision()
    assert on(site, "server001", "cat /data/file") == "kept"
    busy.kill()
    busy.wait()
    on(site, "server001", "pkill -x sleep || true")
    without.provision()
    assert Key(Kind.ATTACHMENT, "server001-data") not in site.provider.observe()
    on(site, "server001", f"! findmnt --source {device} && test ! -e /data/file")
    spec.write_text(declared)
    site.provision()
    assert on(site, "server001", f"mount {device} /data && cat /data/file") == "kept"


@pytest.mark.usefixtures("answering")
def test_a_new_key_gets_in_after_the_state_was_lost(site: Site, state: Path) -> None:
    before = ids(site)
    shutil.rmtree(state / site.spec.name)
    assert ids(site) == before, "the state directory must not be where the cluster is known from"
    with pytest.raises(InputError, match="--adopt"):
        site.provision()
    site.provision(adopt=True)
    assert ids(site) == before
    on(site, "worker001", "true")


def test_anothers_cluster_is_refused_until_it_is_taken_over(site: Site) -> None:
    site.provision()
    before, mine = ids(site), site.paths.owner.read_text()
    site.paths.owner.write_text("someone@elsewhere-0123456789ab\n")
    for change in (site.provision, site.stop, site.down):
        with pytest.raises(InputError, match=f"belongs to {mine.strip()}; this is someone@elsewhere"):
            change()
    site.provision(adopt=True)
    observed = site.provider.observe()
    assert {found.owner for found in observed.values()} <= {None, "someone@elsewhere-0123456789ab"}
    assert observed[Key(Kind.VOLUME, "server001-data")].owner
    assert ids(site) == before
    assert not site.plan()[0]


def test_a_cluster_of_an_earlier_release_gets_its_owner_unasked(site: Site) -> None:
    site.provision()
    mine = site.paths.owner.read_text()
    site.paths.owner.write_text("")
    site.provider.adopt(site.provider.observe())
    site.paths.owner.write_text(mine)
    assert {found.owner for found in site.provider.observe().values()} <= {None, ""}
    site.provision()
    assert {found.owner for found in site.provider.observe().values()} <= {None, mine.strip()}


def test_another_cluster_is_not_seen_and_not_touched(site: Site, neighbour: Site) -> None:
    before = ids(site)
    assert not neighbour.provider.observe()
    neighbour.provision()
    networks = {str(found.data["cidr"]) for one in (site, neighbour) for found in one.provider.observe().of(Kind.NETWORK).values()}
    assert len(networks) == 2
    neighbour.down(volumes=True)
    assert ids(site) == before
    if answers(site):
        on(site, "worker001", "true")


def test_volumes_stay_when_the_cluster_goes(site: Site) -> None:
    device = site.access("server001").volumes["data"].paths[0]
    if answers(site):
        on(site, "server001", f"printf 'kept for later' > {device} && sync")
    site.down()
    left = site.provider.observe()
    assert set(left) == {Key(Kind.VOLUME, "server001-data")}
    site.provision()
    assert site.access("server001").volumes["data"].paths[0] == device
    if answers(site):
        assert on(site, "server001", f"head -c 14 {device}") == "kept for later"


def test_taking_away_what_is_gone_is_well(fresh: Site) -> None:
    fresh.provision()
    observed = fresh.provider.observe()
    fresh.down(volumes=True, final=False)
    for step in teardown(observed).steps:
        fresh.provider.delete(step.key)
    assert not fresh.provider.observe()


def test_a_volume_grows_and_never_shrinks(fresh: Site) -> None:
    fresh.provision()
    device = fresh.access("server001").volumes["data"].paths[0]
    if answers(fresh):
        on(fresh, "server001", f"printf 'first bytes' > {device} && sync")
    else:
        fresh.down()  # not every driver of a cloud extends what is attached
    spec = fresh.paths.spec
    spec.write_text(spec.read_text().replace("1G", "2G"))
    larger = type(fresh).open(spec, Progress(quiet=True))
    assert "update volume server001-data" in [str(step) for step in larger.plan()[0].steps]
    larger.provision()
    assert larger.provider.observe()[Key(Kind.VOLUME, "server001-data")].data["bytes"] == 2 * 2**30
    if answers(fresh):
        assert int(on(fresh, "server001", f"blockdev --getsize64 $(readlink -f {device})")) == 2 * 2**30
        assert on(fresh, "server001", f"head -c 11 {device}") == "first bytes"
    spec.write_text(spec.read_text().replace("2G", "1G"))
    with pytest.raises(InputError, match="never shrink"):
        type(fresh).open(spec, Progress(quiet=True)).provision()


@pytest.mark.usefixtures("answering")
def test_the_console_tells_what_a_node_said(site: Site) -> None:
    on(site, "worker001", "logger --tag conformance 'a word for the journal'")
    assert "a word for the journal" in site.provider.console("worker001", 50)
    with pytest.raises(GridsteadError, match="no node"):
        site.provider.console("worker009", 5)

"""The podman provider's own decisions, without podman."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gridstead.cluster import secrets
from gridstead.cluster.command import CommandError
from gridstead.cluster.errors import InputError, PreflightError
from gridstead.cluster.host import Host
from gridstead.cluster.paths import SitePaths
from gridstead.cluster.providers.podman import engine, volumes
from gridstead.cluster.providers.podman.provider import DEATH_LIMIT, PodmanProvider
from gridstead.cluster.resources import Key, Kind, Observed, Resource, Status
from gridstead.cluster.spec import Cluster
from support import until

ALIVE = "Error: cannot remove container 1f as it could not be stopped: given PID did not die within timeout"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time that passes only where somebody sleeps."""
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    monkeypatch.setattr("time.sleep", sleep)
    return clock


def test_podmans_set_up_can_be_taken_away_once_it_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has only read must not keep the `down` that it runs from cleaning up after the last node."""
    monkeypatch.setattr(engine, "DATA", tmp_path)
    monkeypatch.setattr(engine.Podman, "_use", None)
    podman = engine.Podman(Host())
    podman.hold()
    with (tmp_path / "in-use.lock").open("w") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        podman.release()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    podman.release()


class Podman:
    """Refuses to remove a container, in the words given, so many times."""

    def __init__(self, says: str, times: float) -> None:
        self.says, self.times, self.asked = says, times, 0

    def __call__(self, *words: str) -> str:
        self.asked += 1
        if self.asked <= self.times:
            raise CommandError(["podman", *words], 125, self.says)
        return ""


def remove(podman: Podman) -> None:
    provider: Any = SimpleNamespace(podman=podman)
    PodmanProvider._remove_container(provider, "local-compute001")


def test_a_container_that_waits_for_its_nfs_server_is_waited_for(clock: SimpleNamespace) -> None:
    podman = Podman(ALIVE, times=9)
    remove(podman)
    assert podman.asked == 10
    assert 0 < clock.now < DEATH_LIMIT


def test_a_container_that_never_ends_is_told(clock: SimpleNamespace) -> None:
    with pytest.raises(CommandError, match="did not die"):
        remove(Podman(ALIVE, times=float("inf")))
    assert DEATH_LIMIT < clock.now < DEATH_LIMIT + 10


def test_another_failure_is_told_at_once(clock: SimpleNamespace) -> None:
    podman = Podman("Error: database is locked", times=1)
    with pytest.raises(CommandError, match="locked"):
        remove(podman)
    assert (podman.asked, clock.now) == (1, 0)


# -- directories that are not ours -----------------------------------------------------------------------------------


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory that is not there yet, and a data directory."""
    monkeypatch.setattr(engine, "DATA", tmp_path / "data")
    monkeypatch.setattr(engine, "RUNTIME", tmp_path / "run")
    monkeypatch.setattr(engine.Podman, "_use", None)
    monkeypatch.setattr(engine.Podman, "_make_namespace", lambda _: None)
    return tmp_path / "run"


def set_up() -> None:
    podman = engine.Podman(Host())
    try:
        podman.set_up()
    finally:
        podman.release()


def test_a_directory_of_somebody_else_is_not_taken_for_the_runtime_directory(runtime: Path) -> None:
    (runtime / "storage").mkdir(parents=True)
    (runtime / "storage" / "precious").write_text("data")
    with pytest.raises(InputError, match=r"run is not Gridstead's(.|\n)*GRIDSTEAD_RUNTIME"):
        set_up()
    assert sorted(path.name for path in runtime.rglob("*")) == ["precious", "storage"]


def test_what_an_earlier_boot_left_goes_and_what_others_put_there_stays(runtime: Path) -> None:
    set_up()
    (runtime / "boot_id").write_text("another boot")
    (runtime / "storage").mkdir()
    (runtime / "storage" / "stale").write_text("")
    (runtime / "precious").write_text("data")
    set_up()
    assert (runtime / "boot_id").read_text() == Host().boot_id
    assert not (runtime / "storage").exists()
    assert (runtime / "precious").read_text() == "data"


def test_what_an_earlier_boot_left_is_cleared_by_one_at_a_time(runtime: Path) -> None:
    """Of two first commands after a boot, the slower one must not clear away what the quicker one has set up."""
    set_up()
    (runtime / "boot_id").write_text("another boot")
    (runtime / "storage").mkdir()
    script = (
        "from gridstead.cluster.host import Host; from gridstead.cluster.providers.podman import engine;"
        "engine.Podman._make_namespace = lambda _: None; engine.Podman(Host()).set_up()"
    )
    environment = {**os.environ, "GRIDSTEAD_DATA": str(runtime.parent / "data"), "GRIDSTEAD_RUNTIME": str(runtime)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    with engine.host_lock("engine"):
        slow = subprocess.Popen([sys.executable, "-c", script], env=environment)
        until("the other waits for the lock", lambda: f"{slow.pid}" in [line.split()[5] for line in waiting()])
        assert (runtime / "storage").exists()
        # The quicker one is done: as after a boot, and all set up.
        (runtime / "boot_id").write_text(Host().boot_id)
    assert slow.wait(60) == 0
    assert (runtime / "storage").exists()


def waiting() -> list[str]:
    """The kernel's list of those who wait for a lock (proc(5), /proc/locks)."""
    return [line for line in Path("/proc/locks").read_text().splitlines() if line.split()[1] == "->"]


# -- a cluster's own -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "about"),
    [
        ("start local-frontend001", True),
        ("rm --force --time 0 --ignore local-compute012", True),
        ("network rm --force gridstead-local-0a1b2c3d", True),
        ("ps --all --filter label=gridstead.cluster=local", True),
        ("create --name local-frontend001 --label gridstead.cluster=local", True),
        ("start local-2-frontend001", False),
        ("start local-b-frontend001", False),
        ("network rm --force gridstead-local-2-0a1b2c3d", False),
        ("ps --all --filter label=gridstead.cluster=local-2", False),
    ],
)
def test_podman_at_work_for_another_cluster_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, about: bool
) -> None:
    monkeypatch.setattr(engine, "DATA", tmp_path)
    # A process whose command line is podman's; a shell that waits for a line is what runs.
    argv = ["/usr/bin/podman", "-c", "read -r line", "--root", str(tmp_path / "storage"), *words.split()]
    with subprocess.Popen(argv, executable="/bin/sh", stdin=subprocess.PIPE) as podman:
        # For an instant after exec it has none yet.
        until("its command line", Path(f"/proc/{podman.pid}/cmdline").read_bytes, pause=0.01)
        seen = engine.Podman._at_work("local", "gridstead-local-0a1b2c3d")
        podman.kill()
    assert seen == ([podman.pid] if about else [])


class Engine:
    """Knows one container, in a state; notes what it is told."""

    def __init__(self, state: str = "running", share: str | None = None) -> None:
        self.is_set_up = True
        self.told: list[tuple[str, ...]] = []
        labels = {
            "gridstead.node": "frontend001",
            "gridstead.digest": "d",
            "gridstead.address": "10.0.0.2",
            "gridstead.baked": "{}",
            **({"gridstead.share": share} if share else {}),
        }
        self.container = {"Labels": labels, "State": state, "Id": "0123456789abcdef", "Image": "image"}

    def set_up(self) -> None:
        pass

    def json(self, what: str, *_: str) -> list[dict[str, Any]]:
        return [self.container] if what == "ps" else []

    def mounts_below(self, _: Path) -> list[str]:
        return []


def provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, podman: Engine, *, nfs: bool) -> PodmanProvider:
    for module in (engine, volumes):
        monkeypatch.setattr(module, "DATA", tmp_path)
    monkeypatch.setattr("gridstead.cluster.providers.podman.provider.DATA", tmp_path)
    monkeypatch.setattr(Host, "nfs_client", nfs)
    monkeypatch.setattr(Host, "is_root", True)
    monkeypatch.setattr(Host, "loop", True)
    nodes = {"frontend": {"count": 1, "services": ["nfs_server"]}, "compute": {"count": 2, "services": ["nfs_client"]}}
    spec = Cluster.model_validate({"name": "one", "network": {"cidr": "10.0.0.0/24"}, "nodes": nodes})
    made = PodmanProvider(spec, SitePaths(tmp_path / "cluster.yml", "one"))
    made.podman = made.volumes.podman = podman  # type: ignore[assignment]  # all that is asked of it here
    (tmp_path / "clusters" / "one" / "nodes").mkdir(parents=True)
    return made


def node_digests(made: PodmanProvider, observed: Observed) -> list[str]:
    seen = Observed(observed)
    seen[Key(Kind.NETWORK, made.network)] = made._found_network({"subnets": [{"subnet": "10.0.0.0/24"}], "id": "n"})
    return [one.digest for one in made.desired(seen) if one.key.kind is Kind.NODE]


@pytest.mark.parametrize(("share", "later"), [("directory", True), ("nfs", False), (None, True)])
def test_another_kernel_does_not_make_all_nodes_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: str | None, later: bool
) -> None:
    """Nodes were made while the kernel had (no) NFS client, and this machine was booted with another one since."""
    made = provider(tmp_path, monkeypatch, Engine(share=share), nfs=not later)
    if share != "nfs":
        (tmp_path / "clusters" / "one" / "shares" / "%2Fgrid").mkdir(parents=True)
    before = node_digests(made, made.observe())
    monkeypatch.setattr(Host, "nfs_client", later)
    again = provider_again(made)
    assert node_digests(again, again.observe()) == before
    assert again.variables["gridstead_share"] == made.variables["gridstead_share"] == (share or "directory")


def test_a_node_has_the_shares_that_it_serves_and_as_a_client_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = provider(tmp_path, monkeypatch, Engine(), nfs=False)
    there = tmp_path / "there"
    made.spec = Cluster.model_validate(
        {
            "name": "one",
            "network": {"cidr": "10.0.0.0/24"},
            "shares": [{"path": "/grid", "server": "store"}, {"path": "/data", "server": "mixed"}, {"path": "/old", "source": str(there)}],
            "nodes": {
                "store": {"count": 1, "services": ["nfs_server"]},
                "mixed": {"count": 1, "services": ["nfs_server", "nfs_client"]},
                "compute": {"count": 1, "services": ["nfs_client"]},
                "stranger": {"count": 1},
            },
        }
    )
    seen = Observed()
    seen[Key(Kind.NETWORK, made.network)] = made._found_network({"subnets": [{"subnet": "10.0.0.0/24"}], "id": "n"})
    nodes = {one.key.name: one for one in made.desired(seen) if one.key.kind is Kind.NODE}
    outside = {"/old": str(there)}
    assert {name: (one.properties["shares"], one.properties["directories"]) for name, one in nodes.items()} == {
        "store001": ({"/grid": "rshared"}, {}),
        "mixed001": ({"/grid": "rslave", "/data": "rshared"}, outside),
        "compute001": ({"/grid": "rslave", "/data": "rslave"}, outside),
        "stranger001": ({}, {}),
    }
    assert {key.name for key in nodes["compute001"].needs if key.kind is Kind.SHARE} == {"/grid", "/data"}
    with pytest.raises(PreflightError, match=r"there, the source of share /old, is no directory of this machine"):
        made.preflight([])
    there.mkdir()
    made.preflight([])


def test_nfs_from_outside_needs_the_kernels_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = provider(tmp_path, monkeypatch, Engine(), nfs=False)
    made.spec = Cluster.model_validate(
        {
            "name": "one",
            "shares": [{"path": "/grid", "source": "nas:/grid"}],
            "nodes": {"compute": {"count": 1, "services": ["nfs_client"]}},
        }
    )
    with pytest.raises(
        PreflightError, match=r"no NFS client to mount nas:/grid with; a directory of this machine is right for share /grid"
    ):
        made.preflight([])


def provider_again(made: PodmanProvider) -> PodmanProvider:
    other = PodmanProvider(made.spec, made.paths)
    other.podman = other.volumes.podman = made.podman
    return other


def test_a_paused_node_is_there_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = provider(tmp_path, monkeypatch, Engine("paused"), nfs=True)
    assert made.observe()[Key(Kind.NODE, "frontend001")].status is Status.STOPPED
    told: list[tuple[str, ...]] = []

    def inside(argv: list[str], **_: Any) -> str:
        told.append(tuple(argv[argv.index("podman") + 7 :]))
        return "paused\n" if "inspect" in argv else ""

    monkeypatch.setattr(engine.Podman, "inside", lambda _, argv, **more: inside(argv, **more))
    engine.Podman(Host()).start("one-frontend001")
    assert told[-1] == ("unpause", "one-frontend001")


# -- space -----------------------------------------------------------------------------------------------------------


def test_space_is_not_promised_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sites of 100 G on a disk with 120 G: sparse files take nothing at first, and the second would fill it."""
    made = provider(tmp_path, monkeypatch, Engine(), nfs=True)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=120 * 2**30))
    wanted = [Resource(Key(Kind.VOLUME, "frontend001-data"), {"bytes": 100 * 2**30})]
    made.preflight(wanted)
    other = tmp_path / "clusters" / "other" / "volumes" / "frontend001-data.img"
    other.parent.mkdir(parents=True)
    with other.open("wb") as stream:
        stream.truncate(100 * 2**30)
    with pytest.raises(PreflightError, match=r"204800 MiB are needed .* 122880 MiB are free"):
        made.preflight(wanted)
    # What makes no volume larger is no new promise.
    made.preflight([])


def test_what_a_volume_has_taken_is_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes, "DATA", tmp_path)
    image = tmp_path / "clusters" / "one" / "volumes" / "frontend001-data.img"
    image.parent.mkdir(parents=True)
    with image.open("wb") as stream:
        stream.write(b"x" * 2**20)
        stream.truncate(10 * 2**20)
    os.sync()
    assert volumes.Volumes.promised() == 10 * 2**20 - image.stat().st_blocks * 512
    assert volumes.Volumes.promised() <= 9 * 2**20


def test_a_share_without_a_volume_goes_with_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes, "DATA", tmp_path)
    mounted = [[f"{tmp_path}/clusters/x/shares/%2Fgrid"]]
    unmounted: list[list[str]] = []
    podman: Any = SimpleNamespace(mounts_below=lambda _: mounted.pop() if mounted else [], inside=unmounted.append)
    mine = volumes.Volumes(podman, "x")
    (mine.share("/grid") / "home" / "alice").mkdir(parents=True)
    (mine.share("/grid") / "home" / "alice" / "job.sh").write_text("#!/bin/sh\n")
    mine.delete_share("/grid")
    assert unmounted == [["umount", "--lazy", f"{tmp_path}/clusters/x/shares/%2Fgrid"]]
    assert mine.shares() == []
    mine.delete_share("/grid")


# -- host keys -------------------------------------------------------------------------------------------------------

KEPT = "ssh-ed25519 AAAAKEPT"


def test_a_node_is_known_by_the_key_that_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its seed's, or one that role base put back there; whoever lost known_hosts finds out from the container."""
    monkeypatch.setenv("GRIDSTEAD_STATE", str(tmp_path / "state"))
    made = provider(tmp_path, monkeypatch, Engine(), nfs=True)
    secrets.ensure(made.paths)
    asked: list[tuple[str, ...]] = []
    says = ""

    def exec_(_: Engine, *words: str, timeout: float) -> str:
        asked.append((*words, str(timeout)))
        if says == "no":
            raise CommandError(["podman", *words], 255, "container is stopping")
        return says

    monkeypatch.setattr(Engine, "__call__", exec_, raising=False)
    observed = made.observe()

    def known() -> list[str]:
        made.grant_access(observed)
        return made.paths.known_hosts.read_text().splitlines()

    says = "no"
    assert known() == []
    says = ""
    seed = secrets.public_of(made._seed("frontend001") / "ssh_host_ed25519_key")
    assert known() == [f"10.0.0.2,frontend001,frontend001.grid.test {seed} 0123456789ab"]
    says = f"{KEPT} root@frontend001\n"
    before = len(asked)
    assert KEPT not in known()[0], "whose key is known is not asked"
    made.paths.known_hosts.unlink()
    assert known() == [f"10.0.0.2,frontend001,frontend001.grid.test {KEPT} 0123456789ab"]
    assert len(asked) == before + 1
    # What a run has made itself cannot have another key than its seed's.
    made.paths.known_hosts.unlink()
    made._created.add("frontend001")
    assert known() == [f"10.0.0.2,frontend001,frontend001.grid.test {seed} 0123456789ab"]
    # A seed that was lost is another key.
    (made._seed("frontend001") / "ssh_host_ed25519_key").unlink()
    assert seed not in known()[0]

"""What machine this is, read from the files a machine has."""

from __future__ import annotations

import io
import os
import subprocess
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from rich.console import Console

from gridstead.cluster import doctor
from gridstead.cluster.command import CommandError, run
from gridstead.cluster.errors import PreflightError
from gridstead.cluster.host import PROGRAMS, Host
from gridstead.cluster.progress import Progress

V1 = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def machine(tmp_path: Path) -> Host:
    for name in ("proc/self", "etc", "dev", "run"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "proc/filesystems").write_text("nodev\tsysfs\n\text4\n")
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu vme sse2\n")
    return Host(tmp_path)


@pytest.mark.parametrize(
    ("mounts", "kind"),
    [
        ("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", "v2"),
        ("tmpfs /sys/fs/cgroup tmpfs ro 0 0\n" + V1 + "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n", "hybrid"),
        ("tmpfs /sys/fs/cgroup tmpfs ro 0 0\n" + V1, "v1"),
        ("proc /proc proc rw 0 0\n", "none"),
    ],
)
def test_cgroups(machine: Host, mounts: str, kind: str) -> None:
    (machine.root / "proc/self/mounts").write_text(mounts)
    assert machine.cgroup == kind


def test_systemd_and_devices(machine: Host) -> None:
    assert (machine.systemd, machine.loop, machine.kvm, machine.nfs_client) == (False, False, False, False)
    (machine.root / "run/systemd/system").mkdir(parents=True)
    (machine.root / "dev/loop-control").touch()
    (machine.root / "proc/filesystems").write_text("nodev\tnfs\nnodev\tnfs4\n")
    again = Host(machine.root)
    assert (again.systemd, again.loop, again.kvm, again.nfs_client) == (True, True, False, True)


@pytest.mark.parametrize(
    ("flags", "made", "works"), [("fpu vmx", True, True), ("fpu svm sse2", True, True), ("vmx", False, False), ("vme", True, False)]
)
def test_kvm_needs_the_processors_help_and_a_machine_that_is_made(
    machine: Host, monkeypatch: pytest.MonkeyPatch, flags: str, made: bool, works: bool
) -> None:
    assert not machine.kvm  # no device
    (machine.root / "dev/kvm").touch()
    (machine.root / "proc/cpuinfo").write_text(f"flags\t\t: sse {flags}\n")
    assert not Host(machine.root).kvm  # a file that is no device

    def ioctl(*_: object) -> int:
        if not made:
            raise OSError("no")
        return os.open(machine.root, os.O_RDONLY)

    monkeypatch.setattr("fcntl.ioctl", ioctl)
    assert Host(machine.root).kvm == works


def test_networks_in_use_are_routes_and_name_servers(machine: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    routes = """[{"dst":"default","gateway":"192.0.2.1","dev":"eth0"},{"dst":"10.88.0.0/16","dev":"podman0"},
        {"type":"broadcast","dst":"10.88.255.255","dev":"podman0"},{"type":"local","dst":"192.0.2.7","dev":"eth0"}]"""
    monkeypatch.setattr("gridstead.cluster.host.run", lambda _: routes)
    (machine.root / "etc/resolv.conf").write_text("search x\nnameserver 10.64.0.53\nnameserver fe80::1\n")
    taken = machine.networks_in_use()
    assert taken[IPv4Network("10.88.0.0/16")] == "route to 10.88.0.0/16 on podman0"
    assert set(taken) == {IPv4Network("10.88.0.0/16"), IPv4Network("192.0.2.7/32"), IPv4Network("10.64.0.53/32")}


def test_missing_programs_are_named_by_package(machine: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda program: None if program in {"podman", "nft"} else f"/usr/bin/{program}")
    assert machine.missing_packages == ["nftables", "podman"]


def test_missing_packages_are_installed_as_a_step_of_its_own(machine: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    there: set[str] = set()
    runs = []

    def install(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        runs.append(command[-1])
        there.update(PROGRAMS)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("shutil.which", lambda program: program if program in there else None)
    monkeypatch.setattr("subprocess.run", install)
    progress = Progress(console=Console(file=(told := io.StringIO())))
    machine.ensure_packages(progress)
    machine.ensure_packages(progress)
    assert runs == ["system"]
    assert "✓ install system packages" in told.getvalue()


def test_packages_that_cannot_be_installed_are_told_in_the_words_of_what_tried(machine: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr("subprocess.run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", "E: no space left\n"))
    progress = Progress(console=Console(file=(told := io.StringIO())))
    with pytest.raises(PreflightError, match=r"^E: no space left$"):
        machine.ensure_packages(progress)
    assert "✗ install system packages" in told.getvalue()


def test_every_needed_package_is_in_the_list_that_is_installed() -> None:
    listed = [line for line in (ROOT / "tools/requirements.apt").read_text().splitlines() if line and not line.startswith("#")]
    assert set(PROGRAMS.values()) <= set(listed)
    assert listed == sorted(set(listed))


# ---------------------------------------------------------------------------------------------- running programs


def test_a_failing_program_is_told_with_its_words() -> None:
    with pytest.raises(CommandError, match=r"sh -c 'echo reason >&2; exit 7': exit 7: reason") as caught:
        run(["sh", "-c", "echo reason >&2; exit 7"])
    assert caught.value.status == 7


def test_a_hanging_program_is_ended() -> None:
    with pytest.raises(CommandError, match="no answer in time: first words"):
        run(["sh", "-c", "echo first words >&2; exec sleep 60"], timeout=0.5)


def test_a_missing_program_is_one_clear_error() -> None:
    with pytest.raises(CommandError, match=r"No such file or directory.*no-such-program"):
        run(["no-such-program"])


def test_input_is_passed_and_output_returned() -> None:
    assert run(["cat"], stdin="words\n") == "words\n"
    assert run(["cat"]) == "", "a program without input must not wait for the operator's keyboard"


@pytest.mark.parametrize(("limit", "good"), [("128\n", False), ("8192\n", True), (None, False)])
def test_doctor_tells_how_far_inotify_reaches(machine: Host, limit: str | None, good: bool) -> None:
    """A systemd in a container that gets no inotify instance does not come up, and says nothing that helps."""
    (machine.root / "proc/self/mounts").write_text("proc /proc proc rw 0 0\n")
    (machine.root / "etc/os-release").write_text('ID=debian\nPRETTY_NAME="Debian"\n')
    if limit:
        (machine.root / "proc/sys/fs/inotify").mkdir(parents=True)
        (machine.root / "proc/sys/fs/inotify/max_user_instances").write_text(limit)
    finding = next(one for one in doctor.examine(machine) if one.what == "inotify")
    assert finding.good is good
    assert ("`up` raises it to 1024" in finding.then) is not good
    assert not finding.needed


@pytest.mark.parametrize(("limit", "left", "raised"), [("128\n", "1024", True), ("8192\n", "8192\n", False)])
def test_a_low_limit_of_inotify_is_raised(machine: Host, limit: str, left: str, raised: bool) -> None:
    file = machine.root / "proc/sys/fs/inotify/max_user_instances"
    file.parent.mkdir(parents=True)
    file.write_text(limit)
    assert machine.allow_inotify() is raised
    assert file.read_text() == left

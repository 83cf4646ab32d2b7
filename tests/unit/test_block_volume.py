"""Volumes on their nodes: found by whatever name the cloud's virtual disks give them, and never formatted when there was something on them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from gridstead.cluster import filesystems
from gridstead.cluster.paths import ROOT, SitePaths
from gridstead.cluster.providers.base import Device, NodeAccess
from gridstead.cluster.providers.openstack.volumes import device_paths
from gridstead.cluster.providers.podman import volumes

ID = "2b1f0c7e-5d3a-4e6b-9c8d-0123456789ab"
BLANK, EXISTING = "0f3e2d1c-0000-4000-8000-000000000000", "4d6c"


@pytest.fixture(scope="module")
def role() -> ModuleType:
    """The role's module, as Ansible would load it."""
    path = ROOT / "plugins" / "modules" / "block_volume.py"
    loader = importlib.util.spec_from_file_location("block_volume", path)
    assert loader is not None
    assert loader.loader is not None
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name",
    [
        f"virtio-{ID[:20]}",
        f"virtio-{ID}",
        f"scsi-0QEMU_QEMU_HARDDISK_{ID[:20]}",
        f"scsi-0QEMU_QEMU_HARDDISK_{ID}",
        f"scsi-SQEMU_QEMU_HARDDISK_{ID}",
        f"ata-QEMU_HARDDISK_{ID[:20]}",
        f"nvme-QEMU_NVMe_Ctrl_{ID[:20]}",
        f"nvme-QEMU_NVMe_Ctrl_{ID}_1",
        f"wwn-0x{ID.replace('-', '')}",
    ],
)
def test_a_volume_is_found_by_whatever_name_its_cloud_gives_it(role: ModuleType, tmp_path: Path, name: str) -> None:
    other = ID.replace("2b1f", "2b1e")
    for there in (f"virtio-{other[:20]}", f"scsi-0QEMU_QEMU_HARDDISK_{other}", f"{name}-part1", "wwn-0x5000c500a0b1c2d3", name):
        (tmp_path / there).touch()
    names = tuple(tmp_path / Path(path).name for path in device_paths(ID))
    assert all(Path(path).parent == Path("/dev/disk/by-id") for path in device_paths(ID))
    assert {path.name for path in role.present(names)} == {name}


def test_a_name_that_leads_nowhere_is_not_there_yet(role: ModuleType, tmp_path: Path) -> None:
    (tmp_path / f"virtio-{ID[:20]}").symlink_to(tmp_path / "vdb")
    assert role.present((tmp_path / "virtio-*",)) == []


def volume(role: ModuleType, path: str, **more: Any) -> Any:
    fields = {"filesystem": "ext4", "mount": Path("/data"), "owner": "root", "group": "root", "mode": "0755", **more}
    return role.Volume(name="data", names=(Path(path),), device=Path(path), **fields)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"uuid": BLANK}, [f"had the file system {BLANK} and nothing is found on it now", "nothing was changed", "mkfs.ext4 /dev/null"]),
        ({"format": False}, ["was there before the cluster", "nothing was changed", "`format: true` of volume data"]),
    ],
)
def test_what_once_had_something_is_never_formatted(
    role: ModuleType, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], says: list[str]
) -> None:
    """A volume whose superblock was lost looks as blank as a new one; a user's own may hold what has no signature."""
    found = role.Found()
    monkeypatch.setattr(role.Volumes, "probe", lambda *_: found)
    working = role.Volumes(SimpleNamespace(check_mode=False, params={}))
    with pytest.raises(role.VolumeError) as raised:
        working.examine(volume(role, "/dev/null", **more), "1:3")
    for text in says:
        assert text in str(raised.value)
    assert working.examine(volume(role, "/dev/null"), "1:3") == found
    # With its file system, or another one that the operator has made since, it is as good as any.
    found = role.Found("ext4 file system", "ext4", EXISTING)
    assert working.examine(volume(role, "/dev/null", **more), "1:3") == found


def test_two_volumes_that_are_one_device_are_refused(role: ModuleType) -> None:
    role.apart({"a": "7:0", "b": "7:1"})
    with pytest.raises(role.VolumeError, match="volumes a, c are one device"):
        role.apart({"a": "7:0", "b": "7:1", "c": "7:0"})


def test_the_role_marks_fstab_as_the_engine_reads_it(role: ModuleType) -> None:
    line = f"UUID={BLANK} /data ext4 defaults,{role.OPTION}=data 0 2"
    text = role.fstab_with("UUID=1 / ext4 defaults 0 1\nnode:/grid /grid nfs4 hard 0 0\n", {"/data": line})
    assert filesystems.in_fstab(text) == {"data": BLANK}


# -- what is remembered ----------------------------------------------------------------------------------------------


class Memory:
    """A provider that only remembers."""

    def __init__(self) -> None:
        self.noted: dict[str, dict[str, str]] = {}

    def remember(self, node: str, seen: dict[str, str]) -> None:
        self.noted[node] = seen


def access(**devices: str) -> NodeAccess:
    return NodeAccess("10.0.0.2", "10.0.0.2", volumes={name: Device((f"/dev/disk/by-id/{name}",), uuid) for name, uuid in devices.items()})


def test_each_volume_is_asked_about_until_its_file_system_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def run(argv: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(argv[-2])
        return subprocess.CompletedProcess(argv, 0, f"UUID={BLANK} /data ext4 x-gridstead.volume=data 0 2\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    memory: Any = Memory()
    paths = SitePaths(tmp_path / "cluster.yml", "one")
    nodes = {"frontend001": access(data="", more=""), "compute001": access(data=BLANK), "compute002": access()}
    assert filesystems.remember(paths, memory, nodes)
    assert memory.noted == {"frontend001": {"data": BLANK}}
    assert len(asked) == 1
    assert not filesystems.remember(paths, memory, {"compute001": access(data=BLANK)})
    assert len(asked) == 1


def test_the_podman_provider_remembers_beside_the_volume_as_long_as_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes, "DATA", tmp_path)
    monkeypatch.setattr(volumes.Volumes, "loops", lambda _: {})
    mine: Any = volumes.Volumes(None, "one")  # type: ignore[arg-type]  # nothing is mounted here
    mine.ensure("frontend001-data", 2**20)
    assert mine.filesystem("frontend001-data") == ""
    mine.remember("frontend001-data", BLANK)
    mine.remember("frontend001-other", BLANK)
    again: Any = volumes.Volumes(None, "one")  # type: ignore[arg-type]  # as above
    assert again.filesystem("frontend001-data") == BLANK
    assert again.sizes() == {"frontend001-data": 2**20}
    again.delete("frontend001-data")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert os.listdir(tmp_path) == ["clusters"]  # noqa: PTH208 - names only

"""The virtual machines' image: its name follows what is in it, its disk is one that firmware and kernel accept."""

from __future__ import annotations

import os
import struct
import subprocess
import uuid
import zlib
from pathlib import Path

import pytest
import yaml

from gridstead.cluster import halves
from gridstead.cluster.images import disk, guest, kitchen, machine_image

SECTOR = 512
IDENTITY = uuid.UUID("6991119d-a587-538b-ac6b-1ff83f6b63ca")
GIB = 2**30


@pytest.fixture
def written(tmp_path: Path) -> bytes:
    """A disk of 8 MiB, with codes that are easy to find again."""
    path = tmp_path / "disk.raw"
    disk.Layout(8 * 2**20, IDENTITY).write(path, b"\xaa" * SECTOR, b"\xbb" * 1000)
    return path.read_bytes()


def header(content: bytes, sector: int) -> dict[str, int]:
    raw = content[sector * SECTOR : sector * SECTOR + 92]
    names = ("signature", "revision", "length", "check", "zero", "own", "other", "first", "last")
    fields = dict(zip(names, struct.unpack("<8sIIIIQQQQ", raw[:56]), strict=True))
    fields |= dict(zip(("table", "count", "width", "entries"), struct.unpack("<QIII", raw[72:92]), strict=True))
    fields["right"] = zlib.crc32(raw[:16] + bytes(4) + raw[20:])
    return fields


def entries(content: bytes, sector: int) -> list[tuple[uuid.UUID, int, int, str]]:
    raw = content[sector * SECTOR :]
    rows = (struct.unpack("<16s16sQQQ72s", raw[start : start + 128]) for start in (0, 128))
    return [(uuid.UUID(bytes_le=kind), first, last, name.decode("utf-16-le").rstrip("\0")) for kind, _, first, last, _, name in rows]


def test_both_partition_tables_are_whole(written: bytes) -> None:
    last = len(written) // SECTOR - 1
    for own, other, table in ((1, last, 2), (last, 1, last - 32)):
        found = header(written, own)
        assert (found["signature"], found["own"], found["other"], found["table"]) == (b"EFI PART", own, other, table)
        assert found["check"] == found["right"]
        assert found["entries"] == zlib.crc32(written[table * SECTOR : table * SECTOR + found["count"] * found["width"]])
        assert (found["first"], found["last"]) == (34, last - 33)


def test_partitions_lie_apart_and_inside(written: bytes) -> None:
    layout = disk.Layout(len(written), IDENTITY)
    (boot, boot_first, boot_last, _), (root, root_first, root_last, _) = entries(written, 2)
    assert (boot, root) == (disk.BIOS_BOOT, disk.ROOT_X86_64)
    assert 34 <= boot_first <= boot_last < root_first < root_last <= len(written) // SECTOR - 34
    assert (root_first * SECTOR, (root_last + 1 - root_first) * SECTOR) == (layout.root_start, layout.root_size)
    assert layout.root_size % 1024 == 0


def test_grub_finds_itself(written: bytes) -> None:
    first = entries(written, 2)[0][1]
    assert struct.unpack_from("<Q", written, 0x5C) == (first,)
    core = written[first * SECTOR : first * SECTOR + 1000]
    assert struct.unpack_from("<Q", core, SECTOR - 12) == (first + 1,)
    assert core[:500] + core[508:] == b"\xbb" * 992


def test_grub_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="GRUB's image has 1048577 bytes; its partition has 1048576"):
        disk.Layout(8 * 2**20, IDENTITY).write(tmp_path / "disk", b"", bytes(2**20 + 1))


def test_boot_sector_is_one_and_protects_the_table(written: bytes) -> None:
    assert written[510:512] == b"\x55\xaa"
    assert written[:0x5C] == b"\xaa" * 0x5C
    assert written[0x64:440] == b"\xaa" * (440 - 0x64)
    assert struct.unpack("<B3sB3sII", written[446:462])[2::2] == (0xEE, 1)
    assert written[462:510] == bytes(48)


def test_the_same_image_has_the_same_disk(tmp_path: Path) -> None:
    def write(size: int, identity: uuid.UUID) -> bytes:
        disk.Layout(size, identity).write(tmp_path / "disk", b"\xaa" * SECTOR, b"\xbb" * SECTOR)
        return (tmp_path / "disk").read_bytes()

    assert write(8 * 2**20, IDENTITY) == write(8 * 2**20, IDENTITY)
    assert write(8 * 2**20, IDENTITY) != write(8 * 2**20, uuid.UUID(int=1))


def test_name_follows_release_halves_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kitchen, "base_tag", lambda release: f"base:{release}")
    monkeypatch.setattr(halves, "current", lambda _: {"base": "1"})
    names = [machine_image.name("trixie"), machine_image.name("bookworm")]
    assert machine_image.name("trixie") == names[0]
    assert names[0].startswith("gridstead-node-trixie-")
    for module, attribute, value in (
        (halves, "current", lambda _: {"base": "2"}),
        (kitchen, "base_tag", lambda _: "base:other"),
        (guest, "PACKAGES", (*guest.PACKAGES, "hello")),
        (guest, "MASKED", (*guest.MASKED, "hello.service")),
        (guest, "FILES", {**guest.FILES, "etc/motd": "hello\n"}),
        (guest, "INSTALL", guest.INSTALL + "true\n"),
    ):
        monkeypatch.setattr(module, attribute, value)
        names.append(machine_image.name("trixie"))
    assert len(set(names)) == len(names)


def test_the_newest_images_stay_and_all_can_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_image, "DATA", tmp_path)
    machine_image.remove()  # nothing there
    (tmp_path / "machine").mkdir()
    for number in (2, 3, 1):
        path = tmp_path / "machine" / f"gridstead-node-trixie-{number}.qcow2"
        path.write_bytes(b"QFI\xfb")
        os.utime(path, (number, number))
    machine_image.remove(newest=2)
    assert sorted(path.stem[-1] for path in (tmp_path / "machine").iterdir()) == ["2", "3"]
    machine_image.remove()
    assert list((tmp_path / "machine").iterdir()) == []


def test_an_image_that_is_there_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_image, "DATA", tmp_path)
    monkeypatch.setattr(kitchen, "base_tag", lambda release: f"base:{release}")
    assert machine_image.find("trixie") is None
    (tmp_path / "machine").mkdir()
    # A qcow2 header: magic, version, backing file (offset, length), cluster bits, virtual size.
    header = struct.pack(">4sIQIIQ", b"QFI\xfb", 3, 0, 0, 16, 3 * GIB - 5)
    (tmp_path / "machine" / f"{machine_image.name('trixie')}.qcow2").write_bytes(header)
    found = machine_image.find("trixie")
    assert found is not None
    assert (found.name, found.min_disk, found.halves) == (machine_image.name("trixie"), 3, halves.current(machine_image.VARIABLES))


def test_the_guests_files_are_well_formed() -> None:
    settings = yaml.safe_load(guest.FILES["etc/cloud/cloud.cfg.d/99-gridstead.cfg"])
    # The engine reads the host keys from the console, and they are written once they exist.
    modules = settings["cloud_init_modules"]
    assert modules.index("ssh") < modules.index("keys_to_console")
    assert settings["system_info"]["default_user"]["name"] == "debian"
    for target, text in guest.FILES.items():
        assert not target.startswith("/"), target
        assert text.endswith("\n"), target
    assert "{unmasked}" not in guest.install()
    assert "{masked}" not in guest.install()
    assert "{generators}" not in guest.install()
    scripts = [guest.install(), guest.FINISH, *(text for text in guest.FILES.values() if text.startswith("#!"))]
    for script in scripts:
        subprocess.run(["sh", "-n"], input=script, text=True, check=True)

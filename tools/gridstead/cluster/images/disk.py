"""The layout of a disk that a BIOS boots: a GUID partition table, GRUB in a partition of its own, and the root partition.

Written byte by byte, so that building an image needs neither loop devices nor a disk that GRUB could be installed on. GPT and not the older
table, because systemd-repart grows partitions of no other.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path

SECTOR = 512
#: Partition types (UAPI group, Discoverable Partitions Specification; GNU GRUB manual, "BIOS installation").
BIOS_BOOT = uuid.UUID("21686148-6449-6e6f-744e-656564454649")
ROOT_X86_64 = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")

#: First sectors of the two partitions; the second reaches to the end.
_BOOT, _ROOT = 2048, 4096
#: Sectors of the 128 entries of 128 bytes, before the backup header as after the first.
_ENTRIES = 32


@dataclass(frozen=True)
class Layout:
    """A disk and its two partitions.

    Args:
        size: of the disk, bytes; a multiple of 1 MiB.
        identity: what the ids of disk and partitions are made from, so that one image built twice is the same.
    """

    size: int
    identity: uuid.UUID

    @property
    def root_start(self) -> int:
        """Where the root partition begins, bytes."""
        return _ROOT * SECTOR

    @property
    def root_size(self) -> int:
        """Bytes of the root partition, whole KiB: up to the backup of the partition table."""
        return (self.size // SECTOR - 1 - _ENTRIES - _ROOT) * SECTOR // 1024 * 1024

    def write(self, path: Path, boot: bytes, core: bytes) -> None:
        """Write the disk: all but what is in the root partition.

        Args:
            path: the file, made or emptied.
            boot: GRUB's boot.img.
            core: GRUB's core.img for this disk.
        """
        first, last = self._table()
        with path.open("wb") as stream:
            stream.truncate(self.size)
            stream.write(self._boot_sector(boot))
            stream.write(first)
            stream.seek(_BOOT * SECTOR)
            stream.write(self._core(core))
            stream.seek(self.size - len(last))
            stream.write(last)

    def _id(self, name: str) -> bytes:
        return uuid.uuid5(self.identity, name).bytes_le

    def _table(self) -> tuple[bytes, bytes]:
        """The partition table for the disk's beginning, after the boot sector, and for its end (UEFI 2.10, section 5.3)."""
        last = self.size // SECTOR - 1
        partitions = (
            (BIOS_BOOT, "bios", _BOOT, _ROOT - 1),
            (ROOT_X86_64, "root", _ROOT, _ROOT + self.root_size // SECTOR - 1),
        )
        entries = b"".join(
            struct.pack("<16s16sQQQ72s", kind.bytes_le, self._id(name), begin, end, 0, name.encode("utf-16-le"))
            for kind, name, begin, end in partitions
        ).ljust(_ENTRIES * SECTOR, b"\0")

        def header(own: int, other: int, table: int) -> bytes:
            usable = (2 + _ENTRIES, last - 1 - _ENTRIES)
            rest = struct.pack("<QQQQ16sQIII", own, other, *usable, self._id("disk"), table, 128, 128, zlib.crc32(entries))
            check = zlib.crc32(struct.pack("<8sIIII", b"EFI PART", 0x10000, 92, 0, 0) + rest)
            return (struct.pack("<8sIIII", b"EFI PART", 0x10000, 92, check, 0) + rest).ljust(SECTOR, b"\0")

        return header(1, last, 2) + entries, entries + header(last, 1, last - _ENTRIES)

    def _boot_sector(self, code: bytes) -> bytes:
        """GRUB's first sector, told where the rest lies, with the protective partition table."""
        # Cylinder, head and sector as for disks beyond their range: the block addresses count.
        protective = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, min(self.size // SECTOR - 1, 0xFFFFFFFF))
        # include/grub/i386/pc/boot.h: GRUB_BOOT_MACHINE_KERNEL_SECTOR, 64 bits, is at 0x5c.
        code = code[:0x5C] + struct.pack("<Q", _BOOT) + code[0x64:440]
        return code.ljust(446, b"\0") + protective + bytes(48) + b"\x55\xaa"

    def _core(self, core: bytes) -> bytes:
        """GRUB's image, its first sector told where the others lie: the last 12 bytes are start, length, segment (boot/i386/pc/diskboot.S)."""
        room = (_ROOT - _BOOT) * SECTOR
        if len(core) > room:
            raise ValueError(f"GRUB's image has {len(core)} bytes; its partition has {room}")
        return core[: SECTOR - 12] + struct.pack("<Q", _BOOT + 1) + core[SECTOR - 4 :]

"""Volumes are mounted by UUID and owned as declared; what must not be formatted is not; interrupted work is taken up; devices grow."""

from __future__ import annotations

import base64
import functools
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from testinfra.host import Host

import ansible

testinfra_hosts = ["ansible://compute001"]

MODULE = Path(__file__).parents[5] / "plugins/modules/block_volume.py"
#: The module on the node, with what of Ansible it imports: beside it, as in the archive that Ansible sends.
UNPACKED = "/run/block_volume-test"
BY_ID = "/dev/disk/by-id"
MEBIBYTES = 320  # the least mkfs.xfs takes is 300


class Device(NamedTuple):
    """A block device on the node that no volume of the scenario uses."""

    path: str
    loop: str
    image: str
    name: str


def declared(host: Host) -> list[dict[str, Any]]:
    """The node's own volumes. An inventory plugin's strings come marked as unsafe, {"__ansible_unsafe": "text"}, also inside lists."""
    volumes: list[dict[str, Any]] = host.backend.get_variables()["gridstead_volumes"]
    return [{key: value["__ansible_unsafe"] if isinstance(value, dict) else value for key, value in v.items()} for v in volumes]


@functools.cache
def unpack(host: Host) -> None:
    """Bring the module to the node, once: Ansible takes two seconds and more to start, and the tests here call the module fifty times."""
    archive = io.BytesIO()
    utils = Path(ansible.__path__[0]) / "module_utils"
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(MODULE, arcname=MODULE.name)
        tar.addfile(tarfile.TarInfo("ansible/__init__.py"))
        for path in utils.rglob("*.py"):
            tar.add(path, arcname=f"ansible/module_utils/{path.relative_to(utils)}")
    host.check_output("rm -rf %s && mkdir %s", UNPACKED, UNPACKED)
    text = base64.b64encode(archive.getvalue()).decode()
    # A word of a command line may have 128 KiB.
    for start in range(0, len(text), 100_000):
        host.check_output("echo %s | base64 -d >> %s/archive", text[start : start + 100_000], UNPACKED)
    host.check_output("tar --extract --gzip --directory %s --file %s/archive", UNPACKED, UNPACKED)


def run(host: Host, *more: dict[str, Any], check: bool = False) -> dict[str, Any]:
    """Run the module with the node's volumes and `more`; what it says."""
    unpack(host)
    arguments = {"volumes": [*declared(host), *more], "timeout": 1, "_ansible_check_mode": check}
    words = json.dumps({"ANSIBLE_MODULE_ARGS": arguments})
    said = host.run("cd / && PYTHONPATH=%s python3 %s %s", UNPACKED, f"{UNPACKED}/{MODULE.name}", words)
    assert said.stdout.lstrip().startswith("{"), said.stderr
    result: dict[str, Any] = json.loads(said.stdout)
    assert ("uuids" in result) == (said.rc == 0), result
    return result


def through_ansible(host: Host, *more: dict[str, Any], check: bool) -> dict[str, Any]:
    """The same as Ansible runs it."""
    os.environ["ANSIBLE_LIBRARY"] = str(MODULE.parent)
    arguments = {"volumes": [*declared(host), *more], "timeout": 1}
    result: dict[str, Any] = host.ansible("block_volume", json.dumps(arguments), check=check)
    assert "uuids" in result, result  # ansible's command line leaves `failed` out; only success has this
    return result


def apply(host: Host, *more: dict[str, Any], check: bool = False) -> dict[str, Any]:
    """Run the module with the node's volumes and `more`; it must succeed."""
    result = run(host, *more, check=check)
    assert "uuids" in result, result
    return result


def refused(host: Host, *more: dict[str, Any]) -> str:
    result = run(host, *more)
    assert "uuids" not in result, result
    return str(result["msg"])


def volume(device: Device, filesystem: str = "ext4", **other: Any) -> dict[str, Any]:
    return {"name": device.name, "device": device.path, "filesystem": filesystem, "mount": f"/mnt/{device.name}", **other}


def fingerprint(host: Host, device: Device) -> str:
    return str(host.check_output("sha256sum %s", device.image)).split()[0]


def blkid(host: Host, device: Device, tag: str) -> str:
    return str(host.run("blkid -p -s %s -o value %s", tag, device.path).stdout).strip()


def size(host: Host, device: Device) -> int:
    return int(host.check_output("stat -f -c '%%b %%S' /mnt/%s | awk '{print $1 * $2}'", device.name))


@pytest.fixture(name="device")
def _device(host: Host) -> Iterator[Callable[[], Device]]:
    made: list[Device] = []

    def make() -> Device:
        name = f"trial{len(made)}"
        image = f"/var/tmp/{name}.img"
        host.check_output("truncate -s %sM %s", str(MEBIBYTES), image)
        # A container sees only the loop devices that were there when it started: losetup calls the others "lost". Another user of
        # this machine may take the free one first: then it is the next one's turn.
        script = """
        mkdir -p $1
        for try in 1 2 3 4 5; do
          loop=$(losetup --find | cut -d' ' -f1)
          test -e $loop || mknod $loop b 7 ${loop#/dev/loop}
          # What a test that was killed left there is no reason to leave a loop device behind, each time.
          if losetup $loop $2; then rm -f $1/$3; mknod $1/$3 b 7 ${loop#/dev/loop}; echo $loop; exit; fi
        done
        exit 1
        """
        loop = host.check_output("sh -e -c %s x %s %s %s", script, BY_ID, image, name)
        made.append(Device(f"{BY_ID}/{name}", loop, image, name))
        return made[-1]

    yield make
    # Also the test that a volume taken off the list is unmounted: a busy loop device would stay behind.
    apply(host)
    for device in made:
        host.run(
            "umount /mnt/%s; umount /mnt/%s; losetup -d %s; rm -f %s %s", device.name, device.name, device.loop, device.path, device.image
        )
        left = host.run("losetup --noheadings --list --output BACK-FILE %s", device.loop).stdout
        assert device.image not in left


def test_mounted_by_uuid_from_fstab(host: Host) -> None:
    assert declared(host)
    fstab = host.file("/etc/fstab").content_string
    for v in declared(host):
        uuid = host.check_output("blkid -p -s UUID -o value %s", v["device"])
        entries = [line.split() for line in fstab.splitlines() if line.startswith(f"UUID={uuid} ")]
        assert [e[1] for e in entries] == [v["mount"]]
        assert host.check_output("findmnt -n -o FSTYPE %s", v["mount"]) == v["filesystem"]
        number = host.check_output("findmnt -n -o MAJ:MIN %s", v["mount"]).strip()
        assert number == host.check_output("stat -L -c %%Hr:%%Lr %s", v["device"])


def test_owner_and_mode_of_the_root(host: Host) -> None:
    for v in declared(host):
        root = host.file(v["mount"])
        assert (root.user, root.group, root.mode) == (v["owner"], v["group"], int(v["mode"], 8))


def test_second_run_changes_nothing(host: Host) -> None:
    result = through_ansible(host, check=False)
    assert not result["changed"], result["actions"]


def test_boot_mounts_them_again(host: Host) -> None:
    """What the boot does: the unit mounts what fstab says, parents first."""
    targets = sorted((v["mount"] for v in declared(host)), reverse=True)
    for target in targets:
        host.check_output("umount %s", target)
    assert "gridstead-volumes.service" in host.check_output("systemctl show --property Wants --value local-fs.target")
    host.check_output("systemctl restart gridstead-volumes.service")
    journal = host.run("journalctl --no-pager --lines=30 --unit=gridstead-volumes").stdout
    for target in targets:
        assert host.mount_point(target).exists, journal


@pytest.mark.parametrize(("filesystem", "over_a_share"), [("ext4", False), ("ext4", True), ("xfs", False), ("xfs", True)])
def test_blank_is_formatted_once_and_grows(host: Host, device: Callable[[], Device], filesystem: str, over_a_share: bool) -> None:
    trial = device()
    if over_a_share:  # the provider binds a directory there that other nodes see; tools that look for the first mount find that one
        host.check_output("mkdir -p /mnt/%s && mount --bind /mnt/%s /mnt/%s", trial.name, trial.name, trial.name)
    assert apply(host, volume(trial, filesystem))["changed"]
    assert blkid(host, trial, "LABEL") == trial.name
    host.check_output("sh -c %s", f"echo kept > /mnt/{trial.name}/file")
    before = size(host, trial)
    assert not apply(host, volume(trial, filesystem))["changed"]
    host.check_output("truncate -s 640M %s && losetup -c %s", trial.image, trial.loop)
    grown = apply(host, volume(trial, filesystem))
    assert any("grew" in action for action in grown["actions"])
    assert size(host, trial) > before * 1.8
    assert host.file(f"/mnt/{trial.name}/file").content_string == "kept\n"
    assert not apply(host, volume(trial, filesystem))["changed"]


@pytest.mark.parametrize("script", ["mkfs.xfs -q $0", "mkswap $0", r"printf 'LUKS\272\276\000\001' > $0"], ids=["xfs", "swap", "luks"])
def test_foreign_content_is_left_alone(host: Host, device: Callable[[], Device], script: str) -> None:
    blank, foreign = device(), device()
    host.check_output("sh -c %s %s", script, foreign.path)
    before = fingerprint(host, foreign)
    message = refused(host, volume(blank), volume(foreign))
    assert foreign.path in message
    assert "ext4 is wanted" in message
    assert "wipefs" in message
    assert fingerprint(host, foreign) == before
    assert not blkid(host, blank, "TYPE"), "a volume was formatted although another one of the node is wrong"


def test_partition_table_is_left_alone(host: Host, device: Callable[[], Device]) -> None:
    trial = device()
    # The smallest MBR: one partition of type 83 and the boot signature.
    table = r"printf '\000\000\000\000\203\000\000\000\000\010\000\000\000\010\000\000' | dd of=$0 bs=1 seek=446 conv=notrunc status=none;"
    host.check_output("sh -c %s %s", table + r" printf '\125\252' | dd of=$0 bs=1 seek=510 conv=notrunc status=none", trial.path)
    before = fingerprint(host, trial)
    assert "partition table" in refused(host, volume(trial))
    assert fingerprint(host, trial) == before


def test_finished_mkfs_without_its_label_is_kept(host: Host, device: Callable[[], Device]) -> None:
    trial = device()
    host.check_output("mkfs.ext4 -q -L gs-mkfs %s", trial.path)
    uuid = blkid(host, trial, "UUID")
    apply(host, volume(trial))
    assert (blkid(host, trial, "UUID"), blkid(host, trial, "LABEL")) == (uuid, trial.name)


def test_interrupted_ext4_is_made_again(host: Host, device: Callable[[], Device]) -> None:
    trial = device()
    host.check_output("mkfs.ext4 -q -L gs-mkfs %s", trial.path)
    host.check_output("dd if=/dev/zero of=%s bs=4096 seek=1 count=64 conv=notrunc status=none", trial.path)
    uuid = blkid(host, trial, "UUID")
    apply(host, volume(trial))
    assert blkid(host, trial, "UUID") != uuid
    assert host.mount_point(f"/mnt/{trial.name}").exists


def test_interrupted_xfs_is_made_again(host: Host, device: Callable[[], Device]) -> None:
    trial = device()
    host.check_output("mkfs.xfs -q -L gs-mkfs %s", trial.path)
    host.check_output("sh -c %s %s", r"printf '\001' | dd of=$0 bs=1 seek=126 conv=notrunc status=none", trial.path)
    uuid = blkid(host, trial, "UUID")
    apply(host, volume(trial, "xfs"))
    assert blkid(host, trial, "UUID") != uuid
    assert host.mount_point(f"/mnt/{trial.name}").exists


def test_a_file_system_that_was_mounted_is_never_made_again(host: Host, device: Callable[[], Device]) -> None:
    """Even with the label of an unfinished mkfs and errors on it: somebody may have put data there."""
    trial = device()
    host.check_output("mkfs.ext4 -q -L gs-mkfs %s", trial.path)
    host.check_output("mount %s /mnt && echo data > /mnt/file && umount /mnt", trial.path)
    uuid = blkid(host, trial, "UUID")
    host.check_output("debugfs -w -R 'clri <11>' %s", trial.path)
    assert host.run("e2fsck -f -n %s", trial.path).rc != 0
    apply(host, volume(trial))
    assert blkid(host, trial, "UUID") == uuid
    assert host.file(f"/mnt/{trial.name}/file").content_string == "data\n"


def test_what_had_a_file_system_is_never_formatted_blank_as_it_looks(host: Host, device: Callable[[], Device]) -> None:
    trial = device()
    apply(host, volume(trial))
    uuid = blkid(host, trial, "UUID")
    host.check_output("umount /mnt/%s", trial.name)
    host.check_output("dd if=/dev/zero of=%s bs=1M count=1 conv=notrunc status=none", trial.path)
    before = fingerprint(host, trial)
    message = refused(host, volume(trial, uuid=uuid))
    assert f"had the file system {uuid}" in message
    assert fingerprint(host, trial) == before


def test_an_existing_volume_is_formatted_only_when_it_is_said(host: Host, device: Callable[[], Device]) -> None:
    trial = device()
    assert "format: true" in refused(host, volume(trial, format=False))
    assert not blkid(host, trial, "TYPE")
    apply(host, volume(trial, format=True))
    assert not apply(host, volume(trial, format=False))["changed"]


def test_of_the_names_that_a_device_may_have_the_one_that_is_there_counts(host: Host, device: Callable[[], Device]) -> None:
    trial = device()
    names = [f"{BY_ID}/nosuch-{trial.name}", f"{BY_ID}/{trial.name[:-2]}?{trial.name[-1]}"]
    apply(host, {**volume(trial), "device": names})
    assert host.mount_point(f"/mnt/{trial.name}").exists
    assert not apply(host, {**volume(trial), "device": names})["changed"]


def test_a_copy_of_a_volume_is_refused(host: Host, device: Callable[[], Device]) -> None:
    original, copy = device(), device()
    apply(host, volume(original))
    host.check_output("dd if=%s of=%s bs=1M conv=notrunc status=none", original.path, copy.path)
    message = refused(host, volume(original), volume(copy))
    assert "same UUID" in message
    assert copy.path in message


def test_check_mode_changes_nothing(host: Host, device: Callable[[], Device]) -> None:
    trial = device()
    result = through_ansible(host, volume(trial), check=True)
    assert any("make ext4" in action for action in result["actions"])
    assert not blkid(host, trial, "TYPE")
    assert trial.name not in host.file("/etc/fstab").content_string


def test_volume_taken_off_the_list_keeps_its_data(host: Host, device: Callable[[], Device]) -> None:
    trial = device()
    apply(host, volume(trial))
    host.check_output("sh -c %s", f"echo data > /mnt/{trial.name}/file")
    apply(host)
    assert not host.mount_point(f"/mnt/{trial.name}").exists
    assert trial.name not in host.file("/etc/fstab").content_string
    apply(host, volume(trial))
    assert host.file(f"/mnt/{trial.name}/file").content_string == "data\n"


def test_device_that_is_not_there(host: Host) -> None:
    message = refused(host, {"name": "lost", "device": f"{BY_ID}/lost", "mount": "/mnt/lost"})
    assert "attached" in message
    assert Path(declared(host)[0]["device"]).name in message


def test_wrong_declaration_names_everything_wrong(host: Host) -> None:
    first = declared(host)[0]
    message = refused(
        host,
        {"name": "a", "device": "/dev/vdb", "mount": "/mnt/a"},
        {"name": "b", "device": f"{BY_ID}/../vdb", "mount": "/mnt/b"},
        {"name": "c", "device": f"{BY_ID}/c", "mount": "data"},
        {"name": "d", "device": f"{BY_ID}/d", "mount": "/"},
        {"name": "e", "device": f"{BY_ID}/e", "mount": "/mnt/e", "mode": "rwx"},
        {"name": first["name"], "device": first["device"], "mount": first["mount"]},
    )
    assert f"volume a: device must be a path in {BY_ID}, not /dev/vdb" in message
    assert f"volume b: device must be a path in {BY_ID}" in message
    assert "volume c: mount must be an absolute path below /, not data" in message
    assert "volume d: mount must be an absolute path below /" in message
    assert "volume e: mode must be octal digits, not rwx" in message
    for field in ("name", "device", "mount"):
        assert f"{field} {first[field]} is used by more than one volume" in message


def test_unknown_owner(host: Host, device: Callable[[], Device]) -> None:
    trial = device()
    assert "no user nosuchuser" in refused(host, volume(trial, owner="nosuchuser"))
    assert not blkid(host, trial, "TYPE"), "formatted although it could not be finished"

"""This machine's own arrangements: data behind a link, file systems that its operator unmounts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from gridstead.cluster.providers.podman.engine import DATA
from leftovers import leftovers
from support import ROOT, cluster


def loops(name: str) -> list[str]:
    """The files of a cluster's volumes that are behind loop devices, one entry a device."""
    listed = subprocess.run(["losetup", "--list", "--noheadings", "--output", "BACK-FILE"], capture_output=True, text=True, check=True)
    return sorted(Path(line.strip()).stem for line in listed.stdout.splitlines() if f"/clusters/{name}/volumes/" in line)


def test_data_behind_a_link(small: Path, tmp_path: Path) -> None:
    """/var/lib/gridstead on a larger disk, by a symbolic link: losetup and the kernel's tables tell the real path."""
    volumes = ["server001-data", "worker001-scratch", "worker002-scratch"]
    link = tmp_path / "data"
    link.symlink_to(DATA)
    behind = {"GRIDSTEAD_DATA": str(link)}
    cluster("up", "--site", small, "--no-configure", env=behind)
    assert loops("faults") == volumes
    assert json.loads(cluster("plan", "--site", small, "--json", env=behind).stdout) == []
    cluster("up", "--site", small, "--no-configure", "--replace", "worker001", env=behind)
    cluster("up", "--site", small, "--no-configure", env=behind)
    assert loops("faults") == volumes
    # By its real name it is the same data.
    assert json.loads(cluster("plan", "--site", small, "--json").stdout) == []
    cluster("down", "--site", small, "--volumes", "--yes", env=behind)
    assert loops("faults") == []
    assert leftovers("faults") == []


#: Run where every mount is shared, as systemd has it: a disk of the operator's, podman's set-up, then the disk is unmounted.
_OPERATOR = """\
set -eu
mkdir "$1/disk"
truncate -s 16M "$1/image"
mkfs.ext4 -q "$1/image"
mount -o loop "$1/image" "$1/disk"
"$2" -c 'from gridstead.cluster.host import Host; from gridstead.cluster.providers.podman.engine import Podman; Podman(Host()).set_up()'
nsenter --mount="$GRIDSTEAD_RUNTIME/ns/mnt" cat /proc/self/mountinfo >"$1/before"
umount "$1/disk"
nsenter --mount="$GRIDSTEAD_RUNTIME/ns/mnt" cat /proc/self/mountinfo >"$1/after"
# By the file: a device that is free again may be somebody else's by now.
losetup --noheadings --output NAME --associated "$1/image" >"$1/loop"
umount "$GRIDSTEAD_RUNTIME/ns/mnt" "$GRIDSTEAD_RUNTIME/ns"
while read -r loop; do losetup --detach "$loop"; done <"$1/loop"
"""


def test_what_the_operator_unmounts_is_free(tmp_path: Path) -> None:
    """A disk that was mounted when podman was set up: the kit's mount namespace had it, and kept its device busy with no mount to be seen."""
    environment = {
        **os.environ,
        "GRIDSTEAD_DATA": str(tmp_path / "data"),
        "GRIDSTEAD_RUNTIME": str(tmp_path / "run"),
        "PYTHONPATH": str(ROOT / "tools"),
    }
    # Its cgroup tree is looked at as well: the namespace has one of its own, where the machine's is another.
    command = ["unshare", "--mount", "--propagation", "shared", "sh", "-c", _OPERATOR, "operator", str(tmp_path), sys.executable]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    before, after = ((tmp_path / name).read_text() for name in ("before", "after"))
    assert f" {tmp_path}/disk " in before
    assert f" {tmp_path}/disk " not in after
    assert (tmp_path / "loop").read_text() == "", "the device is still in use"
    assert " /sys/fs/cgroup " in after
    assert " /sys/fs/cgroup/" not in after
    assert " /run/containers/networks " in after


#: A build whose data lie on a disk that is full before the archive is on it; what is asked for before a build is not asked here.
_SMALL_DISK = """\
mount -t tmpfs -o size=48M,mode=711 small "$GRIDSTEAD_DATA"
exec "$1" -c '
import sys
import tempfile
from gridstead.cluster.errors import GridsteadError
from gridstead.cluster.host import Host
from gridstead.cluster.images import kitchen
from gridstead.cluster.progress import Progress
from gridstead.cluster.providers.podman.engine import DATA, Podman
kitchen.check_space = lambda: None
try:
    with kitchen.kitchen(Podman(Host()), "trixie", Progress(quiet=True), {}, rebuild=True):
        pass
except GridsteadError as error:
    print(error, file=sys.stderr)
print(*(path.relative_to(DATA) for path in DATA.rglob("*") if not path.is_dir()))
'
"""


def test_a_disk_that_is_full_while_an_image_is_built(tmp_path: Path) -> None:
    """mmdebstrap hangs up on its process group then: no word, no exit of ours, and a directory that stayed."""
    data = tmp_path / "data"
    data.mkdir()
    environment = {**os.environ, "GRIDSTEAD_DATA": str(data), "PYTHONPATH": str(ROOT / "tools")}
    before = set(Path(tempfile.gettempdir()).glob("mmdebstrap*"))
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", _SMALL_DISK, "operator", sys.executable]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False, start_new_session=True)
    assert done.returncode == 0, done.stderr
    first, *more = done.stderr.splitlines()
    assert first.startswith(f"{data}: the disk was full when it came to build the node image (")
    assert re.search(r"No space left on device.*; \d\d MiB are free now, 50\d\d MiB more are needed$", first), first
    assert more == ["  make room, or set GRIDSTEAD_DATA to a directory on a larger disk"]
    assert done.stdout.split() == []
    assert set(Path(tempfile.gettempdir()).glob("mmdebstrap*")) == before

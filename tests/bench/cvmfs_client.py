"""How fast a mounted repository is read: `tools/test bench cvmfs_client`, on a site of its own.

Runs on the site's stratum 0, which has to be a client too: server and client on one machine, nothing but them in between. A repository of the
bench's own is published, read and removed. Every time stands beside its floors: the same files in a plain directory, and the same objects copied
from the web server over one connection. Prints a Markdown table for README and writes all values to .cache/bench-cvmfs-client.json.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parent.parent.parent
LAUNCHER = Path("/usr/local/bin/gridstead-cvmfs")
SCRATCH = Path("/var/tmp/gridstead-bench-cvmfs")
MOUNT = SCRATCH / "mnt"
FQRN, MILLION = "bench.grid.test", "million.grid.test"
SMALL, LARGE = 5_000, 500_000_000
DIRECTORIES, IN_A_DIRECTORY = 1_000, 1_000


def timed(action: Callable[[], object]) -> float:
    """How long something takes, seconds."""
    began = time.monotonic()
    action()
    return round(time.monotonic() - began, 2)


def read_small(top: Path) -> None:
    """All small files, one after the other, by the usual programs."""
    subprocess.run(["bash", "-c", f"find {top}/small -type f -print0 | xargs -0 cat >/dev/null"], check=True)


def read_large(top: Path) -> None:
    """The large file."""
    subprocess.run(["cat", top / "large"], stdout=subprocess.DEVNULL, check=True)


def grow(tree: Path) -> None:
    """5,000 small files, compressible as software is, and one of 500 MB."""
    dice = random.Random(5)  # noqa: S311  the same tree each time
    for number in range(SMALL):
        directory = tree / f"small/{number // 100:02}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"f{number:04}").write_bytes(dice.randbytes(dice.randrange(50, 4000)).hex().encode())
    with (tree / "large").open("wb") as file:
        for _ in range(LARGE // 1_000_000):
            file.write(dice.randbytes(1_000_000))


class Client:
    """A mounted repository."""

    def __init__(self, fqrn: str, cache: str) -> None:
        MOUNT.mkdir(parents=True, exist_ok=True)
        values = {
            "SERVER_URL": "http://127.0.0.1:8000/cvmfs/@fqrn@",
            "HTTP_PROXY": "DIRECT",
            "PUBLIC_KEY": f"/etc/cvmfs/keys/{fqrn}.pub",
            "CACHE_BASE": str(SCRATCH / cache),
            "QUOTA_LIMIT": "-1",
        }
        options = [word for name, value in values.items() for word in ("--set", f"CVMFS_{name}={value}")]
        self._process = subprocess.Popen([LAUNCHER, "mount", *options, fqrn, MOUNT], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not MOUNT.is_mount():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise SystemExit(f"{fqrn} could not be mounted")
            time.sleep(0.02)

    def memory(self) -> dict[str, int]:
        """What the client holds now, and what it held at most, MiB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return {name: int(re.search(rf"{name}:\s+(\d+)", status)[1]) // 1024 for name in ("VmRSS", "VmHWM")}  # type: ignore[index]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", MOUNT], check=True)
        self._process.wait(30)


def copy_objects(names: list[str], target: Path) -> None:
    """What nobody can save who reads from a web server: the same objects over one connection, written to files."""
    connection = http.client.HTTPConnection("127.0.0.1", 8000)
    target.mkdir(parents=True)
    for number, name in enumerate(names):
        connection.request("GET", f"/cvmfs/{FQRN}/{name}")
        (target / str(number)).write_bytes(connection.getresponse().read())
    connection.close()


@contextlib.contextmanager
def repository_of(fqrn: str) -> Iterator[object]:
    """A repository that is gone at the end."""
    from gridstead.cvmfs.publish import operations
    from gridstead.cvmfs.publish.layout import Layout
    from gridstead.cvmfs.publish.settings import Settings

    layout = Layout(fqrn)
    try:
        yield operations.create(layout, Settings(fqrn), {})
    finally:
        for path in (layout.web, layout.spool, layout.settings.parent):
            shutil.rmtree(path, ignore_errors=True)
        for path in layout.keys.glob(f"{fqrn}.*"):
            path.unlink()


def reading(found: dict[str, object]) -> None:
    """Small files and a large one, cold and warm."""
    from gridstead.cvmfs.publish import operations

    tree = SCRATCH / "tree"
    grow(tree)
    with repository_of(FQRN) as repository:
        operations.publish(repository, tree)  # type: ignore[arg-type]
        for what, read in (("small", read_small), ("large", read_large)):
            found[f"{what}: plain directory"] = min(timed(lambda read=read: read(tree)) for _ in range(3))
            with Client(FQRN, f"cache-{what}") as client:
                found[f"{what}: cold"] = timed(lambda read=read: read(MOUNT))
                found[f"{what}: again, from the kernel"] = min(timed(lambda read=read: read(MOUNT)) for _ in range(3))
                found[f"{what}: memory"] = client.memory()
            with Client(FQRN, f"cache-{what}"):
                found[f"{what}: from the cache"] = timed(lambda read=read: read(MOUNT))
        for what, names in objects().items():
            found[f"{what}: copied from the web server"] = timed(
                lambda names=names, what=what: copy_objects(names, SCRATCH / f"copy-{what}")
            )


def objects() -> dict[str, list[str]]:
    """The paths of the objects that the files consist of."""
    listing: dict[str, list[str]] = {"small": [], "large": []}
    with Client(FQRN, "cache-names"):
        for path in (MOUNT / "small").glob("*/*"):
            digest = os.getxattr(path, "user.hash").decode()
            listing["small"].append(f"data/{digest[:2]}/{digest[2:]}")
        for line in os.getxattr(MOUNT / "large", "user.chunk_list").decode().splitlines()[1:]:
            digest = line.split(",")[0]
            listing["large"].append(f"data/{digest[:2]}/{digest[2:]}P")
    return listing


def remembering(found: dict[str, object]) -> None:
    """What the client needs for a catalogue of a million entries, all of which are looked at."""
    from gridstead.cvmfs.catalog_writer import CatalogWriter
    from gridstead.cvmfs.digest import CATALOG, Hash
    from gridstead.cvmfs.entry import FLAG_DIRECTORY, Entry, file_flags
    from gridstead.cvmfs.manifest import Manifest
    from gridstead.cvmfs.publish.repository import Keys

    def entries() -> Iterator[Entry]:
        yield Entry("", 0o040755, 4096, nlink=2 + DIRECTORIES, flags=FLAG_DIRECTORY)
        for directory in range(DIRECTORIES):
            yield Entry(f"/d{directory:03}", 0o040755, 4096, nlink=2, flags=FLAG_DIRECTORY)
            for number in range(IN_A_DIRECTORY):
                path = f"/d{directory:03}/file-{number:03}"
                yield Entry(path, 0o100644, 1000, hash=Hash.of(path.encode()), flags=file_flags())

    with repository_of(MILLION) as repository:
        file = SCRATCH / "catalogue"
        with CatalogWriter(file) as writer:
            writer.add(entries())
            writer.finish(revision=2, modified=1, previous=None, ttl=240)
        found["million: catalogue, MiB"] = file.stat().st_size >> 20
        staging, before = repository.staging(), repository.manifest  # type: ignore[attr-defined]
        size = file.stat().st_size
        manifest = Manifest(staging.put_file(file, CATALOG), MILLION, before.certificate, 2, catalog_size=size, published=1)
        repository.release(staging, manifest, Keys.read(repository.layout), [])  # type: ignore[attr-defined]
        with Client(MILLION, "cache-million") as client:
            found["million: mounted, memory"] = client.memory()
            command = ["bash", "-c", f"find {MOUNT} -printf '%s\\n' | wc -l"]
            began = time.monotonic()
            seen = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            found["million: find with all attributes"] = round(time.monotonic() - began, 2)
            found["million: all looked at, memory"] = client.memory()
        if seen != DIRECTORIES * (IN_A_DIRECTORY + 1) + 1:
            raise SystemExit(f"find saw {seen} entries")


def here() -> int:
    """All measurements, on this machine."""
    place = re.search(r'sys\.path\.insert\(0, "(.*)"\)', LAUNCHER.read_text())
    if place is None:
        raise SystemExit(f"{LAUNCHER} does not say where the package is")
    sys.path.insert(0, place[1])
    found: dict[str, object] = {"load": os.getloadavg()[0]}
    shutil.rmtree(SCRATCH, ignore_errors=True)
    SCRATCH.mkdir()
    try:
        reading(found)
        remembering(found)
    finally:
        shutil.rmtree(SCRATCH, ignore_errors=True)
    print(json.dumps(found))
    return 0


def table(found: dict[str, object]) -> str:
    """The times as Markdown."""
    rows = ["plain directory", "copied from the web server", "cold", "from the cache", "again, from the kernel"]
    lines = [f"| | {SMALL:,} small files, s | {LARGE // 10**6} MB, s |", "|---|---|---|"]
    lines += [f"| {row} | {found[f'small: {row}']} | {found[f'large: {row}']} |" for row in rows]
    rest = [f"- {name}: {value}" for name, value in found.items() if name.startswith("million") or name.endswith("memory")]
    return "\n".join([*lines, "", *rest])


def main() -> int:
    """Run on the site's node, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--site", default="local")
    parser.add_argument("--here", action="store_true", help="on this machine, which has to be a stratum 0 and a client")
    arguments = parser.parse_args()
    if arguments.here:
        return here()
    sys.path.insert(0, str(ROOT / "tests"))
    from bench_results import keep
    from support import Site

    node = Site.look(arguments.site).first("cvmfs_stratum0")
    program = Path(__file__).read_text()
    said = node.sh(f"cat >/run/bench.py <<'END-OF-BENCH'\n{program}\nEND-OF-BENCH\npython3 /run/bench.py --here")
    found = json.loads(said.stdout.splitlines()[-1])
    print(table(found))
    keep("cvmfs-client", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How fast repositories are published: `tools/test bench cvmfs_publish`, nothing but this machine needed.

Every time stands beside its floor: the same bytes read, compressed, hashed and written by a loop that does nothing else. Prints a Markdown
table for README and writes all values to .cache/bench-cvmfs-publish.json.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]

from bench_results import keep  # noqa: E402  the path comes first
from cvmfs_support import FQRN  # noqa: E402
from gridstead.cvmfs.publish import operations  # noqa: E402
from gridstead.cvmfs.publish.check import check  # noqa: E402
from gridstead.cvmfs.publish.layout import Layout  # noqa: E402
from gridstead.cvmfs.publish.settings import Settings  # noqa: E402

FILES = 20_000
IN_A_DIRECTORY = 100
CHANGES = 10


def grow(tree: Path) -> int:
    """A tree like installed software: many small files, some that repeat. Returns its bytes."""
    dice = random.Random(4)  # noqa: S311  the same tree each time
    total = 0
    for number in range(FILES):
        directory = tree / f"p{number // IN_A_DIRECTORY // 20:02}/d{number // IN_A_DIRECTORY:03}"
        if number % IN_A_DIRECTORY == 0:
            directory.mkdir(parents=True)
        content = dice.randbytes(dice.randrange(100, 5000)).hex().encode()
        (directory / f"f{number % IN_A_DIRECTORY:03}").write_bytes(content)
        total += len(content)
    return total


def plain(tree: Path, target: Path) -> None:
    """What nobody can save: read, compress, hash and write all files."""
    for first in range(256):
        (target / f"{first:02x}").mkdir(parents=True)
    for directory, _, names in os.walk(tree):
        for name in names:
            stored = zlib.compress(Path(directory, name).read_bytes())
            digest = hashlib.sha1(stored, usedforsecurity=False).hexdigest()
            (target / digest[:2] / digest[2:]).write_bytes(stored)
    os.sync()


def stats(tree: Path) -> None:
    """What a publication that changes nothing cannot save: look at all files."""
    for directory, _, _ in os.walk(tree):
        with os.scandir(directory) as found:
            for entry in found:
                entry.stat(follow_symlinks=False)


def timed(act: Callable[[], object]) -> float:
    """How long something takes, seconds."""
    began = time.monotonic()
    act()
    return time.monotonic() - began


def main() -> int:
    """Measure, print, write; 1 when something is wrong with what was published."""
    with tempfile.TemporaryDirectory(prefix="gridstead-bench-cvmfs-") as scratch:
        top = Path(scratch)
        size = grow(top / "tree")
        repository = operations.create(Layout(FQRN, top / "host"), Settings(FQRN), {})
        os.sync()
        time.sleep(1)
        floor = timed(lambda: plain(top / "tree", top / "plain"))
        first = operations.publish(repository, top / "tree")
        looked = timed(lambda: stats(top / "tree"))
        same = operations.publish(repository, top / "tree")
        for number in range(CHANGES):
            (top / f"tree/p{number:02}/d{number * 20:03}/f001").write_text(f"changed {number}\n")
        time.sleep(0.2)
        changed = operations.publish(repository, top / "tree")
        checked = timed(lambda: check(repository))
        problems = check(repository).problems
    assert (first.read, same.read, changed.read) == (FILES, 0, CHANGES), (first, same, changed)
    rows = [
        (
            f"publish {FILES} files, {size / 1e6:.0f} MB: {FILES / first.seconds:.0f} files/s",
            first.seconds,
            "read, compress, hash and write them",
            floor,
        ),
        ("publish again, nothing changed", same.seconds, "lstat of all files", looked),
        (
            f"publish again, {CHANGES} files changed ({changed.read} read, {changed.objects} new objects)",
            changed.seconds,
            "lstat of all files",
            looked,
        ),
        ("check all of it", checked, "", 0.0),
    ]
    print("| what | seconds | its floor | seconds |\n|---|---|---|---|")
    for what, seconds, least, lowest in rows:
        print(f"| {what} | {seconds:.2f} | {least} | {f'{lowest:.2f}' if lowest else ''} |")
    print(f"\n{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    values = {
        "publish": first.seconds,
        "publish_floor": floor,
        "same": same.seconds,
        "stat": looked,
        "changed": changed.seconds,
        "check": checked,
    }
    keep("cvmfs-publish", {**values, "files": FILES, "bytes": size, "load": os.getloadavg()[0]})
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

"""What is left of a cluster on this machine, looked for without the engine's help."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from pathlib import Path


def leftovers(name: str) -> list[str]:
    """Everything on this machine that carries a cluster's whole name: what is of "one-more" is not of "one"."""
    base = Path(os.environ.get("GRIDSTEAD_DATA", "/var/lib/gridstead/podman")).resolve()
    place = re.compile(rf"/clusters/{re.escape(name)}(/|$)")
    node = re.compile(rf"{re.escape(name)}-[a-z][a-z0-9]*[0-9]{{3}}")
    network = re.compile(rf"gridstead-{re.escape(name)}(-[0-9a-f]{{8}})?")
    loops = [line for line in _out("losetup", "--list", "--noheadings", "--output", "BACK-FILE").splitlines() if place.search(line)]
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    mounts = [point for point in points if place.search(point)]
    files = [str(base / "clusters" / name)] if (base / "clusters" / name).exists() else []
    files += [str(path) for path in (base / "networks").glob("*.json") if network.fullmatch(path.stem)]
    processes = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = command.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it ended meanwhile
        named = any(before == "--name" and node.fullmatch(after) for before, after in itertools.pairwise(words))
        if named or any(place.search(word) for word in words):
            processes.append(" ".join(words))
    return [*loops, *mounts, *files, *processes]


def _out(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout

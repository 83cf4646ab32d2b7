"""What is left of a cluster on this machine, looked for without the engine's help."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path


def leftovers(name: str) -> list[str]:
    """Everything on this machine that carries a cluster's name."""
    loops = [line for line in _out("losetup", "--list", "--noheadings", "--output", "BACK-FILE").splitlines() if f"/{name}/" in line]
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"/clusters/{name}" in line]
    links = [link["ifname"] for link in json.loads(_out("ip", "-j", "link")) if name in link["ifname"]]
    base = Path(os.environ.get("GRIDSTEAD_DATA", "/var/lib/gridstead/podman"))
    files = [str(path) for path in (base / "clusters" / name, *(base / "networks").glob(f"gridstead-{name}*.json")) if path.exists()]
    processes = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = command.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        if f"--name {name}-" in words or f"/clusters/{name}/" in words:
            processes.append(words)
    return [*loops, *mounts, *links, *files, *processes]


def _out(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout

"""Evidence of a failure on a site, kept before the site is taken down: status, journals, what Ansible said."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = ROOT / "tools" / "cluster"
#: Lines of a node's journal.
LINES = 2000
#: What a journal's essential lines have in them, and what they are not.
_ESSENTIAL = re.compile(r"(?i)\b(error|fatal|failed|failure|panic|denied|no space|killed|segfault|timed out|oom)\b")
_TELLS_NOTHING = re.compile(r"(?i)Failed to (mount|send WATCHDOG|set up)|error=0|0 errors|no error")
#: So many of them for each node are printed.
_SHOWN = 6


def argument(value: Any) -> str | None:
    """What ``--site`` would be for a fixture's value: a path, or an object that knows one; None for anything else."""
    if isinstance(value, Path):
        return str(value)
    told = getattr(value, "argument", None) or getattr(getattr(value, "paths", None), "spec", None)
    return str(told) if isinstance(told, str | Path) else None


def place(label: str) -> Path:
    """A new directory that stays: below $CI_ARTIFACTS where there is one."""
    parent = os.environ.get("CI_ARTIFACTS")
    if parent:
        Path(parent).mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"gridstead-evidence-{re.sub('[^A-Za-z0-9_.-]+', '-', label)[:60]}-", dir=parent or None))


def keep(site: str, label: str) -> str:
    """Keep what a site's state tells.

    Args:
        site: what ``--site`` is for it.
        label: of what it is evidence; part of the directory's name.

    Returns:
        What to print: where it lies, and the lines that are most likely to matter. A site that tells nothing is no error here.
    """
    where = place(label)
    told = [f"kept in {where}"]
    declared = Path(site) / "cluster.yml" if Path(site).is_dir() else Path(site)
    with contextlib.suppress(OSError):
        shutil.copyfile(declared, where / "cluster.yml")
    (where / "status.txt").write_text(_ask("status", "--site", site))
    (where / "machine.txt").write_text(_machine())
    try:
        nodes = sorted(json.loads(_ask("inventory", "--site", site))["_meta"]["hostvars"])
    except (ValueError, KeyError, TypeError):
        nodes = []
    for node in nodes:
        journal = _ask("logs", node, "--lines", str(LINES), "--site", site)
        (where / f"{node}.log").write_text(journal)
        told += [f"{node}: {line}" for line in essential(journal)]
    logs = _state(declared)
    if logs and logs.is_dir():
        shutil.copytree(logs, where / "logs", dirs_exist_ok=True)
    return "\n".join(told)


def essential(journal: str) -> list[str]:
    """The last lines of a journal that speak of failure, each once."""
    lines = [line for line in journal.splitlines() if _ESSENTIAL.search(line) and not _TELLS_NOTHING.search(line)]
    said: dict[str, str] = {}
    for line in lines:
        said[re.sub(r"\d+", "#", line.partition(": ")[2] or line)] = line
    return list(said.values())[-_SHOWN:]


def _state(declared: Path) -> Path | None:
    """Where Ansible's output of a site lies."""
    with contextlib.suppress(OSError, ImportError, AttributeError):
        from gridstead.cluster.paths import state_home

        name = re.search(r"(?m)^name: *(\S+)", declared.read_text())
        return state_home() / name[1] / "logs" if name else None
    return None


def _machine() -> str:
    """How this machine does: load, memory, disks."""
    said = [Path(name).read_text() for name in ("/proc/loadavg", "/proc/meminfo") if Path(name).exists()]
    disks = subprocess.run(["df", "-h"], capture_output=True, text=True, check=False, timeout=30)
    return "\n".join([*said, disks.stdout])


def _ask(*arguments: str) -> str:
    """What the command says, both ways."""
    try:
        done = subprocess.run(
            [CLUSTER, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False, timeout=60
        )
    except subprocess.TimeoutExpired:
        return "no answer within 60 s\n"
    return done.stdout if done.returncode == 0 else done.stdout + done.stderr

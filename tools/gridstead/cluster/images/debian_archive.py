"""Debian's archive as this machine reaches it, for the root file systems that are made here."""

from __future__ import annotations

import re
from pathlib import Path

from gridstead.cluster.command import run
from gridstead.cluster.errors import GridsteadError


def sources(release: str, etc: Path = Path("/etc")) -> str:
    """This machine's own Debian sources with the suite changed: nodes reach the archive as the machine does.

    Args:
        release: Debian's code name.
        etc: this machine's configuration.

    Returns:
        The text of a sources file, deb822 where this machine has any of that style, else one line an entry.

    Raises:
        GridsteadError: this machine has no source of Debian's archive.
    """
    files = [etc / "apt/sources.list", *sorted((etc / "apt/sources.list.d").glob("*"))]
    here = re.search(r"^VERSION_CODENAME=(\w+)", (etc / "os-release").read_text(), re.MULTILINE)
    codename = here[1] if here else release
    stanzas: list[tuple[str, str]] = []
    for file in files:
        if not file.is_file() or file.suffix not in (".list", ".sources"):
            continue
        text = "".join(line for line in file.read_text().splitlines(keepends=True) if not line.startswith("#"))
        parts = text.split("\n\n") if file.suffix == ".sources" else text.splitlines()
        # Debian's own archive only: another archive need not have the other release.
        debian = (part for part in parts if re.search(rf"\b{codename}\b", part) and re.search(r"\bmain\b", part))
        stanzas += [(file.suffix, re.sub(rf"\b{codename}\b", release, part)) for part in debian]
    if not stanzas:
        raise GridsteadError(
            f"no Debian archive for {codename} in {etc}/apt/sources.list*",
            hint="images are built from the sources this machine has; add Debian's archive to them",
        )
    deb822 = [part for suffix, part in stanzas if suffix == ".sources"]
    return "\n\n".join(deb822) + "\n" if deb822 else "\n".join(part for _, part in stanzas) + "\n"


def settings() -> str:
    """This machine's Acquire settings (proxies, validity checks), as an apt.conf."""
    told = run(["apt-config", "dump", "--no-empty", "--format", '%F "%v";%n', "Acquire"])
    own = "".join(f"{line}\n" for line in told.splitlines() if not line.startswith("Acquire::IndexTargets"))
    # One connection of hundreds that fails must not fail a build of minutes; what the machine sets itself comes later and wins.
    return f'Acquire::Retries "5";\n{own}'


def write(directory: Path, release: str) -> tuple[Path, Path]:
    """Write both where mmdebstrap can read them.

    Args:
        directory: where; it is there.
        release: Debian's code name.

    Returns:
        The sources file, its suffix that of its style, and the apt.conf.
    """
    text = sources(release)
    entries = directory / f"debian.{'sources' if re.search(r'(?m)^Types:', text) else 'list'}"
    entries.write_text(text)
    configuration = directory / "settings"
    configuration.write_text(settings())
    return entries, configuration

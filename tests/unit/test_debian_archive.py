"""This machine's sources of Debian's archive, for another release."""

from __future__ import annotations

from pathlib import Path

import pytest

from gridstead.cluster.errors import GridsteadError
from gridstead.cluster.images import debian_archive

ONE_LINE = """\
# deb http://mirror.example/debian bookworm main
deb [trusted=yes] http://mirror.example/debian bookworm main contrib
deb http://mirror.example/debian bookworm-updates main
deb http://tools.example/apt stable tools
"""
DEB822 = """\
Types: deb
URIs: http://mirror.example/debian
# the suites
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: http://tools.example/apt
Suites: stable
Components: tools
"""


def machine(etc: Path, **files: str) -> Path:
    """A bookworm machine's /etc with files in sources.list.d."""
    (etc / "apt/sources.list.d").mkdir(parents=True)
    (etc / "os-release").write_text("ID=debian\nVERSION_CODENAME=bookworm\n")
    for name, text in files.items():
        (etc / "apt/sources.list.d" / name.replace("_", ".")).write_text(text)
    return etc


def test_one_line_style_with_another_suite(tmp_path: Path) -> None:
    assert debian_archive.sources("trixie", machine(tmp_path, debian_list=ONE_LINE)) == (
        "deb [trusted=yes] http://mirror.example/debian trixie main contrib\ndeb http://mirror.example/debian trixie-updates main\n"
    )


def test_deb822_with_another_suite_and_without_other_archives(tmp_path: Path) -> None:
    etc = machine(tmp_path, debian_sources=DEB822, other_list=ONE_LINE, debian_save="deb http://old.example bookworm main")
    assert debian_archive.sources("trixie", etc) == (
        "Types: deb\nURIs: http://mirror.example/debian\nSuites: trixie trixie-updates\nComponents: main\n"
    )


def test_a_machine_without_the_archive(tmp_path: Path) -> None:
    with pytest.raises(GridsteadError, match="no Debian archive for bookworm"):
        debian_archive.sources("trixie", machine(tmp_path, other_list="deb http://tools.example/apt stable tools\n"))


@pytest.mark.parametrize(("text", "name"), [(ONE_LINE, "debian.list"), (DEB822, "debian.sources")])
def test_files_for_mmdebstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str) -> None:
    etc = machine(tmp_path / "etc", **{name.replace(".", "_"): text})
    read = debian_archive.sources
    monkeypatch.setattr(debian_archive, "sources", lambda release: read(release, etc))
    entries, settings = debian_archive.write(tmp_path, "trixie")
    assert entries.name == name
    assert settings.read_text().startswith('Acquire::Retries "5";\n')

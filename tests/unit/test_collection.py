"""The collection holds what its roles need, nothing of the engine, and its plugins under the names that roles use."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from support import ROOT


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tarfile.TarFile:
    where = tmp_path_factory.mktemp("collection")
    galaxy = Path(sys.executable).parent / "ansible-galaxy"
    subprocess.run([galaxy, "collection", "build", "--output-path", where, ROOT], check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return tarfile.open(next(where.glob("gridstead-site-*.tar.gz")))


def test_it_holds_every_role_and_what_roles_use(archive: tarfile.TarFile) -> None:
    names = set(archive.getnames())
    for role in (path for path in (ROOT / "roles").iterdir() if path.is_dir()):
        files = {path for path in role.rglob("*") if path.is_file() and not {"molecule", "__pycache__", ".ansible"} & set(path.parts)}
        assert {str(path.relative_to(ROOT)) for path in files} <= names
    assert {
        f"plugins/{name}"
        for name in ("modules/block_volume.py", "action/site_check.py", "action/host_keys.py", "filter/gridstead_package.py")
    } <= names
    assert {"tools/gridstead/__init__.py", "tools/gridstead/cvmfs/__main__.py", "tools/gridstead/pki/rsa.py", "meta/runtime.yml"} <= names


def test_it_holds_nothing_else(archive: tarfile.TarFile) -> None:
    tops = {name.split("/")[0] for name in archive.getnames()}
    assert tops == {
        *("MANIFEST.json", "FILES.json", "README.md", "CHANGELOG.md", "LICENSE", "meta", "playbooks", "plugins", "roles", "tools"),
    }
    assert not [
        name for name in archive.getnames() if re.search(r"/molecule(/|$)|tools/gridstead/cluster|tools/ansible|__pycache__/", name)
    ]


def test_its_version_is_the_packages(archive: tarfile.TarFile) -> None:
    manifest = archive.extractfile("MANIFEST.json")
    assert manifest is not None
    version = json.load(manifest)["collection_info"]["version"]
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()


def test_roles_name_plugins_of_their_own_in_full() -> None:
    """A role in a collection finds no plugin beside itself."""
    own = [path.stem for path in (ROOT / "plugins").rglob("*.py")]
    for file in [*ROOT.glob("roles/*/tasks/*.yml"), *ROOT.glob("roles/*/vars/*.yml"), *ROOT.glob("playbooks/*.yml")]:
        for name in own:
            short = re.findall(rf"(?m)^\s+{name}:$|\| {name}\(", file.read_text())
            assert short == [], f"{file}: gridstead.site.{name} is right"
    assert not list(ROOT.glob("roles/*/library")) + list(ROOT.glob("roles/*/*_plugins"))

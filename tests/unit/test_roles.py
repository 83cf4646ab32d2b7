"""What a role says of its variables, in three places, is one thing: defaults, argument_specs and README."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import ROOT

ROLES = sorted(path.parent.parent.name for path in ROOT.glob("roles/*/meta/argument_specs.yml"))


def read(role: str, file: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "roles" / role / file).read_text())
    return content


def options(role: str) -> dict[str, Any]:
    """The options of all entry points."""
    found: dict[str, Any] = {}
    for entry in read(role, "meta/argument_specs.yml")["argument_specs"].values():
        found |= entry.get("options", {})
    return found


def folded(value: Any) -> Any:
    """Text without regard to how it is broken into lines."""
    return " ".join(value.split()) if isinstance(value, str) else value


def test_every_role_has_argument_specs() -> None:
    assert sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir()) == ROLES


@pytest.mark.parametrize("role", ROLES)
def test_argument_specs_and_defaults_say_the_same(role: str) -> None:
    defaults, specs = read(role, "defaults/main.yml"), options(role)
    required = {name for name, spec in specs.items() if spec.get("required")}
    assert set(specs) - required == set(defaults)
    said = {name: folded(spec.get("default")) for name, spec in specs.items() if name not in required}
    assert said == {name: folded(value) for name, value in defaults.items()}


@pytest.mark.parametrize("role", ROLES)
def test_the_readme_names_every_variable_and_no_other(role: str) -> None:
    readme = (ROOT / "roles" / role / "README.md").read_text()
    rows = [line.split("|")[1] for line in readme.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([a-z0-9_]+)`", row) if name.startswith((f"{role}_", "gridstead_"))}

    assert named == set(options(role))


@pytest.mark.parametrize("role", ROLES)
def test_a_variable_begins_with_its_roles_name(role: str) -> None:
    prefixes = (f"{role}_",)
    assert [name for name in options(role) if not name.startswith(prefixes)] == []
    private = re.compile(rf"_{{1,2}}{role}_")
    for file in (ROOT / "roles" / role / "vars").glob("*.yml") if Path(ROOT / "roles" / role / "vars").is_dir() else ():
        assert [name for name in yaml.safe_load(file.read_text()) if not private.match(name)] == [], file


@pytest.mark.parametrize("role", ROLES)
def test_what_only_the_install_half_loads_only_the_install_half_uses(role: str) -> None:
    """On nodes of the kit's image that half is skipped, and its names of packages are not there."""
    where = ROOT / "roles" / role
    for names in where.glob("vars/[A-Z]*.yml"):
        for name in yaml.safe_load(names.read_text()):
            users = [path for path in where.rglob("*.yml") if name in path.read_text() and "molecule" not in path.parts]
            allowed = {names, *where.glob("tasks/install*.yml"), *(where.glob("vars/main.yml") if name.endswith("_packages") else ())}
            assert set(users) <= allowed, name
            assert not [path for path in where.rglob("*.j2") if name in path.read_text()], name

"""What of Ansible is tested where: the roles' Molecule scenarios, which role each exercises, and that none is without."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Ansible modules without examples: why, and what tests them.
WITHOUT_EXAMPLES = {"gridstead_cluster": "it is the engine behind a module's arguments; tests/faults runs its playbooks, --check too"}


def ansible_modules(root: Path = ROOT) -> list[Path]:
    """The modules for Ansible, whose examples are their unit tests."""
    return sorted([*root.glob("plugins/modules/*.py"), *root.glob("tools/ansible/modules/*.py")])


def all_roles(root: Path = ROOT) -> list[str]:
    """Every role of the checkout."""
    return sorted(path.name for path in (root / "roles").iterdir() if (path / "tasks").is_dir() or (path / "meta").is_dir())


def of_roles(root: Path = ROOT) -> dict[str, Path]:
    """The directory of the role with whose scenario each role is tested: the scenario that has the role's tests, ``test_ROLE.py``."""
    found = {
        path.stem.removeprefix("test_"): path.parents[3]
        for path in sorted(root.glob("roles/*/molecule/default/tests/test_*.py"))
        if (path.parent.parent / "molecule.yml").exists()
    }
    return {role: found[role] for role in all_roles(root) if role in found}


def complaints(root: Path = ROOT) -> list[str]:
    """What is wrong: Molecule itself takes a scenario without tests for a good one, and says nothing of a role without a scenario."""
    known = of_roles(root)
    found = [
        f"role {role} has no tests: no scenario has a test_{role}.py (roles/ROLE/molecule/default/tests)"
        for role in all_roles(root)
        if role not in known
    ]
    idle = {path.parents[2] for path in root.glob("roles/*/molecule/default/molecule.yml")} - set(known.values())
    found += [f"the scenario of role {where.name} has no role's tests" for where in sorted(idle)]
    return found + [
        f"role {role} has tests in the scenario of role {where.name}, which does not run it"
        for role, where in known.items()
        if role not in exercised(where.name, root)
    ]


def exercised(role: str, root: Path = ROOT) -> set[str]:
    """The roles that a role's scenario runs: those its playbooks name, and what they depend on."""
    known = set(all_roles(root))
    text = "\n".join(path.read_text() for path in (root / "roles" / role / "molecule/default").glob("*.yml"))
    found = {name for name in known if re.search(rf"\b{name}\b", text)}
    while True:
        more = {other for name in found for other in _dependencies(name, known, root)} - found
        if not more:
            return found
        found |= more


def _dependencies(role: str, known: set[str], root: Path) -> set[str]:
    """The roles that a role's own files name: in meta, or by include_role."""
    files = [root / "roles" / role / "meta/main.yml", *(root / "roles" / role).glob("tasks/*.yml")]
    text = "\n".join(path.read_text() for path in files if path.exists())
    return {name for name in re.findall(r"(?m)^\s*(?:- )?(?:role|name): (?:gridstead\.\w+\.)?(\w+)\s*$", text) if name in known}

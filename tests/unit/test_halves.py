"""Install halves: the digest of one covers every file that it can use, and a node says which it was made with."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gridstead.cluster import halves
from gridstead.cluster.paths import ROOT

CONTAINER = {"gridstead_container": True, "gridstead_share": "directory"}
INSTALL = """\
- ansible.builtin.include_vars: "{{ ansible_facts['os_family'] }}.yml"
- ansible.builtin.include_tasks: packages.yml
- ansible.builtin.template: {src: one.j2, dest: /etc/one, mode: "0644"}
"""
FILES = {
    "tasks/main.yml": "- ansible.builtin.include_tasks: install.yml\n- ansible.builtin.import_tasks: configure.yml\n",
    "tasks/install.yml": INSTALL,
    "tasks/packages.yml": "- ansible.builtin.import_tasks: repository.yml\n",
    "tasks/repository.yml": "- ansible.builtin.apt: {name: one}\n",
    "tasks/configure.yml": "- ansible.builtin.template: {src: two.j2, dest: /etc/two, mode: '0644'}\n",
    "templates/one.j2": "one\n",
    "templates/deep/two.j2": "two\n",
    "files/three": "three\n",
    "handlers/main.yml": "[]\n",
    "defaults/main.yml": "one_packages: [one]\n",
    "vars/Debian.yml": "_one: 1\n",
    "library/one.py": "pass\n",
    "filter_plugins/one.py": "pass\n",
    "meta/main.yml": "dependencies: []\n",
    "README.md": "# one\n",
    "molecule/default/converge.yml": "[]\n",
    "tests/test_one.py": "pass\n",
}
#: What no install half of this role uses: what runs after it, and what says or tests what it does.
ASIDE = {"tasks/main.yml", "tasks/configure.yml", "README.md", "molecule/default/converge.yml", "tests/test_one.py"}


def write(role: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = role / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def half(roles: Path, role: str = "one") -> str:
    halves._digests.cache_clear()
    return halves.current(CONTAINER, roles)[role]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    halves._digests.cache_clear()


@pytest.fixture
def roles(tmp_path: Path) -> Path:
    write(tmp_path / "one", FILES)
    write(tmp_path / "common", {"tasks/packages.yml": "[]\n", "defaults/main.yml": "{}\n"})
    write(tmp_path / "other", {"tasks/install.yml": "[]\n"})
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_each_file_that_a_half_can_use_changes_its_digest(roles: Path, name: str) -> None:
    before = half(roles)
    path = roles / "one" / name
    path.write_text(path.read_text() + "# changed\n")
    assert (half(roles) != before) == (name not in ASIDE)


@pytest.mark.parametrize("change", ["added", "removed", "renamed"])
def test_files_that_come_and_go_count_too(roles: Path, change: str) -> None:
    before = half(roles)
    path = roles / "one" / "templates" / "one.j2"
    if change == "added":
        shutil.copy(path, path.with_name("new.j2"))
    else:
        path.rename(path.with_name("other.j2") if change == "renamed" else roles / "gone")
    assert half(roles) != before


@pytest.mark.parametrize(
    "calls",
    [
        "- ansible.builtin.include_tasks: configure.yml\n",
        "- ansible.builtin.include_tasks: 'configure'\n",
        "- ansible.builtin.import_tasks:\n    file: configure.yml\n",
        '- include_tasks: "{{ item }}.yml"\n  loop: [configure]\n',
        '- ansible.builtin.include_tasks:\n    file: "{{ which }}.yml"\n',
        "- ansible.builtin.include_tasks: >-\n    {{ which }}.yml\n",
    ],
)
def test_a_half_has_all_that_it_includes(roles: Path, calls: str) -> None:
    write(roles / "one", {"tasks/repository.yml": calls})
    before = half(roles)
    write(roles / "one", {"tasks/configure.yml": "- ansible.builtin.debug: {msg: changed}\n"})
    assert half(roles) != before


@pytest.mark.parametrize(
    "calls",
    [
        "- ansible.builtin.include_role:\n    name: common\n    tasks_from: packages.yml\n",
        "- ansible.builtin.include_role:\n    name: gridstead.site.common\n    tasks_from: packages.yml\n",
        "- ansible.builtin.import_role: {name: common}\n",
        '- ansible.builtin.include_role:\n    tasks_from: packages.yml\n    name: "{{ which }}"\n',
    ],
)
def test_a_half_has_the_roles_that_it_calls(roles: Path, calls: str) -> None:
    write(roles / "one", {"tasks/packages.yml": calls})
    before = half(roles)
    write(roles / "common", {"tasks/packages.yml": "- ansible.builtin.debug: {msg: changed}\n"})
    assert half(roles) != before


def test_a_half_has_the_roles_that_its_role_depends_on(roles: Path) -> None:
    write(roles / "one", {"meta/main.yml": "dependencies:\n  - role: common\n"})
    before = half(roles)
    write(roles / "common", {"defaults/main.yml": "common_changed: true\n"})
    assert half(roles) != before


def test_a_role_that_is_not_called_changes_nothing(roles: Path) -> None:
    before = half(roles)
    write(roles / "common", {"tasks/packages.yml": "- ansible.builtin.debug: {msg: changed}\n"})
    assert half(roles) == before


def test_every_file_of_every_role_here_is_taken_or_known_to_be_aside() -> None:
    """Of this checkout's own roles too: what is left out of a digest is what runs after the half, and what is no part of nodes."""
    roles = ROOT / "roles"
    for role in sorted(roles.iterdir()):
        if not (role / "tasks" / "install.yml").is_file():
            continue
        used = set(halves.used_files(role, roles))
        left = {path.relative_to(role) for path in role.rglob("*") if path.is_file() and path not in used}
        left = {path for path in left if path.parts[0] not in {"molecule", "tests"} and "__pycache__" not in path.parts}
        assert {path.name for path in left if path.parts[0] != "tasks"} <= {"README.md"}, role.name
        assert Path("tasks/install.yml") not in left


def test_what_a_node_is_to_its_roles_counts() -> None:
    """An image baked while this machine's kernel had no NFS client has no nfs-common: with another kernel it is not what is wanted."""
    made = halves.current(CONTAINER)
    assert halves.baked(made, CONTAINER) == sorted(made)
    assert halves.baked(made, {**CONTAINER, "gridstead_flavor": {"cpus": 2}}) == sorted(made)
    assert halves.baked(made, {**CONTAINER, "gridstead_share": "nfs"}) == []
    assert halves.baked(made, {**CONTAINER, "gridstead_container": False}) == []


def test_only_halves_of_this_checkout_are_baked() -> None:
    made = halves.current(CONTAINER)
    assert halves.baked({**made, "base": "0123456789ab", "gone": "1"}, CONTAINER) == sorted(made.keys() - {"base"})
    # A node of before they were noted: every half is run.
    assert halves.baked({}, CONTAINER) == []

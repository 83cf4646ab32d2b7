"""What nodes are configured from: whom a change concerns, and which roles."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gridstead.cluster import configuration, inventory, secrets
from gridstead.cluster.configuration import HOOKS, KNOWLEDGE, Play
from gridstead.cluster.paths import ROOT, SitePaths
from gridstead.cluster.providers.base import Device, NodeAccess
from gridstead.cluster.seal import Verdict, todo
from gridstead.cluster.spec import Cluster
from gridstead.pki.authority import Authority, Request

KINDS: dict[str, Any] = {
    "frontend": {"count": 1, "services": ["nfs_server", "slurm_accounting", "slurm_controller", "cvmfs_stratum0", "arc_ce", "monitoring"]},
    "proxy": {"count": 1, "services": ["cvmfs_squid"]},
    "compute": {"count": 2, "services": ["nfs_client", "slurm_node", "cvmfs_client"]},
}
FRONTEND = ["base", "block_volume", "nfs_server", "munge", "slurm_accounting", "slurm_controller", "cvmfs_stratum0", "arc_ce", "monitoring"]
COMPUTE = ["base", "block_volume", "nfs_client", "munge", "slurm_node", "cvmfs_client", "monitoring"]
Inputs = dict[str, dict[str, str]]


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SitePaths:
    monkeypatch.setenv("GRIDSTEAD_STATE", str(tmp_path / "state"))
    (tmp_path / "site").mkdir()
    found = SitePaths(tmp_path / "site" / "cluster.yml", "trial")
    secrets.ensure(found)
    return found


def listing(paths: SitePaths, **changes: Any) -> dict[str, Any]:
    """The inventory of the site, with keys of its kinds changed (``compute={"count": 3}``)."""
    kinds = {kind: {**content, **changes.get(kind, {})} for kind, content in KINDS.items()}
    spec = Cluster.model_validate({"name": "trial", "nodes": kinds})
    nodes = {
        name: NodeAccess(
            f"10.70.{list(kinds).index(node.kind)}.{node.number}",
            f"192.0.2.{node.number}",
            volumes={"data": Device(("/dev/disk/by-id/x",))},
        )
        for name, node in spec.node_names().items()
    }
    return inventory.build(spec, paths, nodes)


def inputs(paths: SitePaths, **changes: Any) -> Inputs:
    return configuration.inputs(paths, listing(paths, **changes))


def changed(before: Inputs, after: Inputs) -> dict[str, list[str]]:
    """The roles with other inputs, by node; new nodes not among them."""
    found = {node: [role for role in roles if before[node].get(role) != roles[role]] for node, roles in after.items() if node in before}
    return {node: roles for node, roles in found.items() if roles}


def test_every_node_has_its_services_roles_and_no_others(paths: SitePaths) -> None:
    found = inputs(paths)
    assert list(found["frontend001"]) == FRONTEND
    assert list(found["compute001"]) == COMPUTE
    assert list(found["proxy001"]) == ["base", "block_volume", "cvmfs_squid", "monitoring"]
    assert found == inputs(paths), "the same twice"


def test_a_new_node_concerns_those_that_must_know_it(paths: SitePaths) -> None:
    before, after = inputs(paths), inputs(paths, compute={"count": 3})
    assert set(after) - set(before) == {"compute003"}
    servers = {"frontend001": ["base", "nfs_server", "slurm_controller", "monitoring"], "proxy001": ["cvmfs_squid"]}
    assert changed(before, after) == servers
    assert changed(after, before) == servers, "and so does one that goes"


def test_a_squid_tells_the_clients_and_the_servers(paths: SitePaths) -> None:
    before, after = inputs(paths), inputs(paths, proxy={"count": 2})
    assert changed(before, after) == {
        "frontend001": ["base", "monitoring"],
        "proxy001": ["cvmfs_squid"],
        "compute001": ["cvmfs_client"],
        "compute002": ["cvmfs_client"],
    }


def test_a_larger_compute_node_concerns_itself_and_slurm(paths: SitePaths) -> None:
    after = changed(inputs(paths), inputs(paths, compute={"flavor": {"cpus": 8}}))
    assert after == {"frontend001": ["slurm_controller"], "compute001": COMPUTE, "compute002": COMPUTE}


def test_a_volume_of_the_server_concerns_those_that_mount_it(paths: SitePaths) -> None:
    volumes = [{"name": "data", "size": "1G", "mount": "/grid"}]
    after = changed(inputs(paths), inputs(paths, frontend={"volumes": volumes}))
    assert after == {"frontend001": FRONTEND, "compute001": ["nfs_client"], "compute002": ["nfs_client"]}


def test_how_a_node_is_reached_concerns_nobody(paths: SitePaths) -> None:
    one = listing(paths)
    other = json.loads(json.dumps(one))
    for variables in other["_meta"]["hostvars"].values():
        variables |= {"ansible_host": "198.51.100.7", "ansible_ssh_common_args": "-o ProxyJump=gate"}
    other["all"]["vars"]["gridstead_secrets"] = "/elsewhere"
    assert changed(configuration.inputs(paths, one), configuration.inputs(paths, other)) == {}


# ---------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("file", "concerned"),
    [
        ("group_vars/all.yml", {"frontend001", "proxy001", "compute001", "compute002"}),
        ("group_vars/all/more.yml", {"frontend001", "proxy001", "compute001", "compute002"}),
        ("group_vars/compute.yml", {"frontend001", "proxy001", "compute001", "compute002"}),
        ("group_vars/cvmfs_client/x.yml", {"frontend001", "proxy001", "compute001", "compute002"}),
        ("host_vars/compute001.yml", {"frontend001", "proxy001", "compute001"}),
        ("group_vars/no_such_group.yml", set()),
        ("notes.txt", set()),
        ("other/cluster.yml", set()),
        ("files/motd", set()),
    ],
)
def test_which_file_beside_the_declaration_concerns_whom(paths: SitePaths, file: str, concerned: set[str]) -> None:
    before = inputs(paths)
    path = paths.spec.parent / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x: 1\n")
    assert set(changed(before, inputs(paths))) == concerned


def test_compute_nodes_do_not_depend_on_each_others_variables(paths: SitePaths) -> None:
    before = inputs(paths)
    directory = paths.spec.parent / "host_vars"
    directory.mkdir()
    (directory / "compute001.yml").write_text("x: 1\n")
    assert "compute002" not in changed(before, inputs(paths))


def test_variables_that_speak_of_other_nodes_concern_all_of_them(paths: SitePaths) -> None:
    directory = paths.spec.parent / "group_vars"
    directory.mkdir()
    (directory / "all.yml").write_text("base_hosts: \"{{ groups['all'] }}\"\n")
    before = inputs(paths)
    assert changed(before, inputs(paths, compute={"count": 3})) == before_roles(before)


def before_roles(found: Inputs) -> dict[str, list[str]]:
    return {node: list(roles) for node, roles in found.items()}


def test_hooks_and_what_they_name_concern_all_nodes(paths: SitePaths) -> None:
    base, before = paths.spec.parent, inputs(paths)
    (base / "after.yml").write_text("- ansible.builtin.template: {src: motd.j2, dest: /etc/motd}\n")
    hooked = inputs(paths)
    assert changed(before, hooked) == {key: [HOOKS] for key in before}
    (base / "motd.j2").write_text("Welcome")
    named = inputs(paths)
    assert changed(hooked, named) == {key: [HOOKS] for key in before}
    (base / "files").mkdir()
    (base / "files" / "more").write_text("x")
    assert changed(named, inputs(paths)) == {key: [HOOKS] for key in before}


def test_nothing_else_beside_the_declaration_is_read(paths: SitePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    (paths.spec.parent / "large.img").write_text("x")
    read = Path.read_bytes
    seen: list[Path] = []
    monkeypatch.setattr(Path, "read_bytes", lambda self: seen.append(self) or read(self))
    inputs(paths)
    assert not [path for path in seen if path.is_relative_to(paths.spec.parent)]


def test_a_file_that_goes_meanwhile_is_no_error(paths: SitePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = paths.spec.parent / "group_vars"
    directory.mkdir()
    (directory / "all.yml").write_text("x: 1\n")
    before, below = inputs(paths), configuration.below
    monkeypatch.setattr(configuration, "below", lambda where: [*below(where), *([where / "gone"] if where.name == "group_vars" else [])])
    assert changed(before, inputs(paths)) == {}


@pytest.mark.parametrize("name", ["munge.key", "slurm-accounting.password", "of/a/host.key"])
def test_a_secret_concerns_the_roles_that_read_secrets(paths: SitePaths, name: str) -> None:
    before = inputs(paths)
    path = paths.secrets / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("another one")
    after = changed(before, inputs(paths))
    assert {role for roles in after.values() for role in roles} == {"munge", "slurm_accounting", "arc_ce"}
    paths.ssh_key.write_text("another key")
    assert changed(inputs(paths), inputs(paths)) == {}


def test_what_roles_issued_is_none_of_their_inputs(paths: SitePaths) -> None:
    before = inputs(paths)
    (paths.secrets / "ca").mkdir()
    (paths.secrets / "ca" / "ca.pem").write_text("minted in this run")
    assert changed(before, inputs(paths)) == {}


def test_certificates_are_renewed_where_they_are_issued(paths: SitePaths) -> None:
    plain = configuration.groups_of(listing(paths))
    assert configuration.renewals(paths, plain) == {}, "no REST, no certificates"
    services = [*KINDS["frontend"]["services"], "arc_rest"]
    groups = configuration.groups_of(listing(paths, frontend={"services": services}, proxy={"services": ["cvmfs_squid", "arc_client"]}))
    work = {"frontend001": {"arc_ce"}, "proxy001": {"arc_client"}}
    assert configuration.renewals(paths, groups) == work, "there is no authority"
    authority, user = Authority(paths.secrets / "ca", "/O=trial/CN=Authority"), Request("user-alice", "/O=trial/CN=alice")
    authority.ensure([user], days=31)
    assert configuration.renewals(paths, groups) == {}
    (paths.secrets / "ca" / "user-alice.pem").unlink()
    authority.ensure([user], days=29)
    assert configuration.renewals(paths, groups) == work
    (paths.secrets / "ca" / "user-alice.pem").write_text("cut o")
    assert configuration.renewals(paths, groups) == work


def role(roles: Path, name: str, **files: str) -> None:
    for file, text in {"meta/main.yml": "dependencies: []\n", **files}.items():
        path = roles / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_role_has_the_files_of_those_it_calls(tmp_path: Path) -> None:
    role(tmp_path, "one", **{"meta/main.yml": "galaxy_info: {}\ndependencies:\n  - role: two\n    when: x\n"})
    role(tmp_path, "two", **{"tasks/main.yml": '- name: Call\n  ansible.builtin.include_role:\n    name: three\n    tasks_from: "a.yml"\n'})
    role(tmp_path, "three", **{"meta/main.yml": "dependencies: [four]\n"})
    role(tmp_path, "four", **{"README.md": "x", "molecule/default/x.yml": "x"})
    role(tmp_path, "five")

    def digest(name: str) -> str:
        configuration.role_files.cache_clear()
        return configuration.role_files(name, tmp_path).digest

    before = digest("one")
    for name, counts in [
        ("four/tasks/main.yml", True),
        ("four/README.md", False),
        ("four/molecule/default/x.yml", False),
        ("five/x.yml", False),
    ]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("changed")
        after = digest("one")
        assert (after != before) is counts, name
        before = after


# ---------------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize("name", sorted(path.parent.parent.name for path in (ROOT / "roles").glob("*/meta/main.yml")))
def test_the_table_has_all_that_a_role_says_of_other_nodes(name: str) -> None:
    files = [
        path for path in (ROOT / "roles" / name).rglob("*") if path.suffix in (".yml", ".j2") and not {"molecule", "meta"} & set(path.parts)
    ]
    text = "\n".join(path.read_text() for path in files)
    mine = [entry for entry in KNOWLEDGE if entry.role == name]
    told = {group for entry in mine for group in entry.of}
    said = set(re.findall(r"groups\[['\"](\w+)['\"]\]", text)) | set(re.findall(r"group: (\w+), job", text))
    assert "all" in told or said <= {*told, "all"}, f"roles/{name} speaks of groups that KNOWLEDGE does not have"
    if "hostvars" in text:
        variables = set(
            re.findall(r"hostvars\[[^\]]+\]\.(\w+)|extract', hostvars, '(\w+)'|selectattr\('(gridstead_\w+)', 'defined'\)", text)
        )
        known = {variable for entry in mine for variable in entry.variables}
        assert {name for found in variables for name in found if name} <= known


def test_the_servers_are_those_that_role_base_says() -> None:
    text = (ROOT / "roles" / "base" / "vars" / "main.yml").read_text()
    assert set(re.findall(r"groups\['(\w+)'\]", text)) == set(configuration._SERVERS)


# ---------------------------------------------------------------------------------------------- plays


@pytest.mark.parametrize(
    ("pattern", "groups", "runs"),
    [
        ("all", [], True),
        ("a:b", ["b"], True),
        ("a:b", ["c"], False),
        ("a,b", ["a"], True),
        ("all:!b", ["b"], False),
        ("all:&b", ["b", "c"], True),
        ("a:&b", ["a"], False),
    ],
)
def test_patterns(pattern: str, groups: list[str], runs: bool) -> None:
    assert Play(Path("x"), {"hosts": pattern}).on(groups) is runs


def test_imports_carry_nothing_that_a_selection_would_lose() -> None:
    for entry in configuration.yaml().load((ROOT / "playbooks" / "site.yml").read_text()):
        assert set(entry) <= {"name", "ansible.builtin.import_playbook"}, entry


def test_plays_are_kept_to_the_nodes_where_they_have_something_to_do(paths: SitePaths) -> None:
    groups = configuration.groups_of(listing(paths, compute={"count": 3}))
    work = {"frontend001": {"base", "nfs_server"}, "compute003": set(COMPUTE)}
    plays = {role: play["hosts"] for play in configuration.selected(paths, groups, work) for role in Play(Path(), play).roles}
    assert plays["base"] == ["frontend001", "compute003"]
    assert plays["nfs_server"] == ["frontend001"]
    assert plays["slurm_node"] == plays["munge"] == ["compute003"]
    assert "slurm_controller" not in plays
    names = [play["name"] for play in configuration.selected(paths, groups, work)]
    assert not {"Before", "After"} & set(names), "there are no hooks"
    (paths.spec.parent / "after.yml").write_text("[]")
    assert "After" in [play["name"] for play in configuration.selected(paths, groups, work)]


def test_what_is_to_do(paths: SitePaths) -> None:
    groups = configuration.groups_of(listing(paths))
    work = todo({"compute001": Verdict(sealed=True, inputs=("nfs_client",)), "compute002": Verdict(sealed=False)}, groups)
    assert work == {"compute001": {"nfs_client"}, "compute002": set(COMPUTE)}
    work = todo({"compute001": Verdict(sealed=True, differences=("file /etc/x was changed",))}, groups)
    assert work == {"compute001": set(COMPUTE)}
    work = todo({"frontend001": Verdict(sealed=False)}, groups)
    assert work["frontend001"] == set(FRONTEND)
    assert work["compute001"] == {"base", "nfs_client", "slurm_node", "cvmfs_client", "monitoring"}, (
        "a new server: its clients look at it again"
    )
    assert work["proxy001"] == {"base", "cvmfs_squid", "monitoring"}


def test_a_module_that_a_role_names_counts_for_it(tmp_path: Path) -> None:
    for role, task in (("one", "gridstead.site.thing:"), ("other", "ansible.builtin.debug:")):
        (tmp_path / "roles" / role / "tasks").mkdir(parents=True)
        (tmp_path / "roles" / role / "tasks" / "main.yml").write_text(f"- name: Do\n  {task}\n")
    module = tmp_path / "plugins" / "modules" / "thing.py"
    module.parent.mkdir(parents=True)
    seen = []
    for content in ("1", "2"):
        module.write_text(content)
        configuration.role_files.cache_clear()
        seen.append([configuration.role_files(role, tmp_path / "roles").digest for role in ("one", "other")])
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] == seen[1][1]

"""Plays shared out over runs of Ansible side by side: who waits for what, and what becomes of those who wait in vain."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from gridstead.cluster import configuration, lanes
from gridstead.cluster.lanes import Lane
from gridstead.cluster.paths import SitePaths
from gridstead.cluster.playbook import PlaybookError
from gridstead.cluster.progress import Progress

SERVER = ["frontend", "nfs_server", "slurm_accounting", "slurm_controller", "cvmfs_stratum0", "cvmfs_client", "arc_ce", "arc_client"]
NODE = ["compute", "nfs_client", "slurm_node", "cvmfs_client"]


def site(count: int) -> dict[str, list[str]]:
    """The groups of a frontend and some compute nodes."""
    return {"frontend001": SERVER} | {f"compute{number:03}": NODE for number in range(1, count + 1)}


def plays(groups: dict[str, list[str]]) -> list[dict[str, Any]]:
    """All that is to do where nothing was configured."""
    todo = {node: configuration.roles_on(own) for node, own in groups.items()}
    return configuration.selected(SitePaths(Path("nowhere/cluster.yml"), "trial"), groups, todo)


def test_all_that_was_to_do_is_done_once_and_in_order() -> None:
    groups = site(12)
    whole = plays(groups)
    shared = lanes.share_out(whole, groups, processors=2)
    assert [lane.name for lane in shared] == ["", "software", "nodes-1", "nodes-2"]
    for play in whole:
        hosts = [host for lane in shared for one in lane.plays if one["name"] == play["name"] for host in one["hosts"]]
        assert sorted(hosts) == sorted(play["hosts"]), play["name"]
    order = [play["name"] for play in whole]
    for lane in shared:
        names = [play["name"] for play in lane.plays]
        assert names == sorted(names, key=order.index)
    # The whole site is asked once, before anybody begins.
    assert sorted(shared[0].plays[0]["hosts"]) == sorted(groups)
    assert all("Validate" in needed for lane in shared[1:] for needed in lane.waits.values())


def test_names_of_plays_are_unique() -> None:
    names = [play.content["name"] for play in configuration.plays()]
    assert sorted(names) == sorted(set(names))


def test_a_play_waits_for_what_it_needs_and_no_more() -> None:
    groups = site(2)
    _, _, nodes = lanes.share_out(plays(groups), groups, processors=2)
    by_role = {play["roles"][0]["role"]: nodes.waits[play["name"]] for play in nodes.plays if play.get("roles")}
    always = {"Validate", "Base of every node", "Host keys"}
    assert by_role["block_volume"] == always
    assert by_role["monitoring"] == always
    assert by_role["nfs_client"] == {*always, "Shared file system, server"}
    assert by_role["slurm_node"] == {*always, "Slurm controller"}
    assert by_role["cvmfs_client"] == {*always, "CVMFS repositories of the site"}
    # It is nobody's wish, and so after all that comes before it.
    play = {"name": "Shared file system, clients", "hosts": ["compute001"], "roles": [{"role": "of_another_kind"}]}
    needed = lanes._needs(play, plays(groups), lanes.share_out(plays(groups), groups, processors=2)[0].plays)
    assert needed == {*always, "Block volumes", "Shared file system, server"}


def test_software_goes_beside_the_batch_system_on_the_same_node() -> None:
    groups = site(2)
    first, software, _ = lanes.share_out(plays(groups), groups, processors=2)
    assert [play["name"] for play in software.plays] == ["CVMFS repositories of the site", "CVMFS clients"]
    assert not {play["name"] for play in first.plays} & {play["name"] for play in software.plays}
    always = {"Validate", "Base of every node", "Host keys"}
    assert software.waits["CVMFS repositories of the site"] == always
    # Not where packages are installed: one package manager a node.
    assert [lane.name for lane in lanes.share_out(plays(groups), groups, processors=2, install=True)] == ["", "nodes-1"]


def test_many_nodes_without_their_servers_wait_for_one_question_only() -> None:
    groups = {node: own for node, own in site(12).items() if node != "frontend001"}
    first, second = lanes.share_out(plays(groups), groups, processors=2)
    assert sorted(first.plays[0]["hosts"]) == sorted(groups)
    assert not first.waits
    assert set(second.waits.values()) == {frozenset({"Validate"})}


def test_every_need_is_of_a_role_that_runs() -> None:
    known = {role for play in configuration.plays() for role in play.roles}
    assert set(lanes.AFTER) <= known
    assert {role for needed in lanes.AFTER.values() for role in needed} <= known


@pytest.mark.parametrize(
    ("groups", "processors"),
    [(site(12), 1), ({"frontend001": SERVER}, 2), ({"compute001": NODE}, 2)],
    ids=["one processor", "servers only", "one node"],
)
def test_where_nothing_is_to_be_gained_all_is_one_run(groups: dict[str, list[str]], processors: int) -> None:
    (only,) = lanes.share_out(plays(groups), groups, processors)
    assert [play["name"] for play in only.plays] == [play["name"] for play in plays(groups)]
    assert not only.waits


def test_tasks_of_the_sites_own_may_need_anything(tmp_path: Path) -> None:
    (tmp_path / "after.yml").write_text("[]\n")
    groups = site(12)
    todo = {node: configuration.roles_on(own) for node, own in groups.items()}
    whole = configuration.selected(SitePaths(tmp_path / "cluster.yml", "trial"), groups, todo)
    assert len(lanes.share_out(whole, groups, processors=2)) == 1


# -- run, by a real Ansible --------------------------------------------------------------------------------------------


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SitePaths:
    monkeypatch.setenv("GRIDSTEAD_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("GRIDSTEAD_STRATEGY", "linear")
    inventory = tmp_path / "hosts.yml"
    variables = f"{{ansible_connection: local, ansible_python_interpreter: {sys.executable}}}"
    inventory.write_text(f"all: {{hosts: {{server: {variables}, node: {variables}}}}}\n")
    found = SitePaths(inventory, "trial")
    found.logs.mkdir(parents=True)
    found.facts.mkdir()
    return found


def play(name: str, host: str, script: str) -> dict[str, Any]:
    task = {"name": f"{name}'s task", "ansible.builtin.shell": script}
    return {"name": name, "hosts": [host], "gather_facts": False, "tasks": [task]}


def test_what_is_needed_comes_first(paths: SitePaths, tmp_path: Path) -> None:
    told = tmp_path / "told"
    shared = [
        Lane("", [play("serve", "server", f"sleep 1; echo served >>{told}"), play("more", "server", "true")], serves=True),
        Lane("nodes", [play("use", "node", f"echo used >>{told}")], {"use": frozenset({"serve"})}),
    ]
    recap = lanes.run(shared, paths, Progress(quiet=True), what="trial")
    assert told.read_text().split() == ["served", "used"]
    assert set(recap.hosts) == {"server", "node"}
    assert sorted(recap.changed) == ["node: use's task", "server: more's task", "server: serve's task"]


def test_the_servers_last_play_is_over_when_all_is(paths: SitePaths, tmp_path: Path) -> None:
    told = tmp_path / "told"
    shared = [
        Lane("", [play("serve", "server", f"echo served >>{told}")], serves=True),
        Lane("nodes", [play("use", "node", f"echo used >>{told}")], {"use": frozenset({"serve"})}),
    ]
    lanes.run(shared, paths, Progress(quiet=True), what="trial")
    assert told.read_text().split() == ["served", "used"]


def test_who_waits_in_vain_is_not_told_as_a_failure(paths: SitePaths, tmp_path: Path) -> None:
    shared = [
        Lane("", [play("serve", "server", "echo the reason >&2; exit 3"), play("more", "server", "true")], serves=True),
        Lane("nodes", [play("use", "node", f"touch {tmp_path / 'used'}")], {"use": frozenset({"serve"})}),
    ]
    with pytest.raises(PlaybookError) as caught:
        lanes.run(shared, paths, Progress(quiet=True), what="trial")
    assert str(caught.value).splitlines()[0] == "server: serve's task: non-zero return code"
    assert "node" not in str(caught.value)
    assert not (tmp_path / "used").exists()


def test_a_failure_of_either_is_told(paths: SitePaths) -> None:
    shared = [
        Lane("", [play("serve", "server", "true"), play("more", "server", "exit 4")], serves=True),
        Lane("nodes", [play("use", "node", "exit 5")], {"use": frozenset({"serve"})}),
    ]
    with pytest.raises(PlaybookError) as caught:
        lanes.run(shared, paths, Progress(quiet=True), what="trial")
    assert "server: more's task" in str(caught.value)
    assert "node: use's task" in str(caught.value)


def test_who_waits_in_vain_tells_what_had_failed_before(paths: SitePaths) -> None:
    shared = [
        Lane("", [play("serve", "server", "exit 3"), play("more", "server", "true")], serves=True),
        Lane("nodes", [play("own", "node", "exit 5"), play("use", "node", "true")], {"use": frozenset({"serve"})}),
    ]
    with pytest.raises(PlaybookError) as caught:
        lanes.run(shared, paths, Progress(quiet=True), what="trial")
    assert "server: serve's task" in str(caught.value)
    assert "node: own's task" in str(caught.value)


def test_a_node_in_two_lanes_is_counted_once(paths: SitePaths) -> None:
    shared = [Lane("", [play("serve", "server", "true")], serves=True), Lane("software", [play("publish", "server", "true")], serves=True)]
    recap = lanes.run(shared, paths, Progress(quiet=True), what="trial")
    assert recap.hosts["server"]["changed"] == 2

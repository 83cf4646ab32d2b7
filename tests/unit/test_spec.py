"""cluster.yml: what holds, and what every mistake is told as."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridstead.cluster.errors import InputError
from gridstead.cluster.services import SERVICES
from gridstead.cluster.spec import Cluster, parse_size
from gridstead.cluster.spec_file import load, write_count, write_removal

ROOT = Path(__file__).resolve().parents[2]

GOOD = """\
---
name: trial
provider: podman
domain: grid.test
network:
  cidr: auto
nodes:
  frontend:
    count: 1
    flavor: {cpus: 2, memory: 2048}
    services: [nfs_server, slurm_accounting, slurm_controller, arc_ce]
    volumes:
      - {name: grid, size: 4G, mount: /grid, filesystem: xfs}
  compute:
    count: 2  # two will do
    services: [nfs_client, slurm_node]
    volumes:
      - name: scratch
        size: 1G
        mount: /scratch
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.yml"
    path.write_text(GOOD)
    return path


def line_of(text: str, part: str) -> int:
    """The line (from 1) of the first line that holds `part`."""
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


def test_a_good_file_loads_with_its_defaults(spec: Path) -> None:
    cluster = load(spec)
    assert list(cluster.node_names()) == ["frontend001", "compute001", "compute002"]
    assert cluster.services_of("compute002") == ("nfs_client", "slurm_node")
    assert cluster.nodes["compute"].flavor.cpus == 2
    assert cluster.nodes["compute"].volumes[0].bytes == 2**30
    assert cluster.nodes["compute"].volumes[0].filesystem == "ext4"
    assert cluster.image.release == "trixie"


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("inventories/*/cluster.yml")) + sorted(ROOT.glob("roles/*/molecule/*/cluster.yml")), ids=str
)
def test_every_cluster_yml_of_this_repository_holds(path: Path) -> None:
    assert load(path).node_names()


SHAPE = """\
name: shape
shares:
  - /shared
  - {path: /data, server: store002}
  - {path: /scratch, server: mixed}
  - {path: /old, source: "nas.example.org:/export/old"}
  - {path: /here, source: /srv/here}
nodes:
  store: {count: 2, services: [nfs_server]}
  mixed: {count: 1, services: [nfs_server, nfs_client]}
  compute: {count: 1, services: [nfs_client]}
  stranger: {count: 1}
"""


def test_shares_of_several_servers_and_from_outside(spec: Path) -> None:
    spec.write_text(SHAPE.replace("- /shared", "- {path: /shared, server: store001}"))
    cluster = load(spec)
    origins = {
        "/shared": "store001",
        "/data": "store002",
        "/scratch": "mixed001",
        "/old": "nas.example.org:/export/old",
        "/here": "/srv/here",
    }
    assert cluster.origins == origins
    assert cluster.own_shares == ["/shared", "/data", "/scratch"]
    assert cluster.shares_seen("store002") == {"/data": "store002"}
    assert cluster.shares_seen("mixed001") == cluster.shares_seen("compute001") == origins
    assert cluster.shares_seen("stranger001") == {}
    assert cluster.state_of("store001") == {"the shared directories": None}


def test_a_share_from_outside_needs_no_server(spec: Path) -> None:
    spec.write_text("name: shape\nshares: [{path: /grid, source: 'nas:/grid'}]\nnodes:\n  compute: {count: 2, services: [nfs_client]}\n")
    assert load(spec).origins == {"/grid": "nas:/grid"}
    more = spec.read_text().replace("shares: [{", "shares: [/data, {")
    spec.write_text(more)
    with pytest.raises(
        InputError, match=r"cluster.yml:2: shares.0: no node exports /data: nfs_server on one is right, or a source outside"
    ):
        load(spec)
    spec.write_text(more.replace("/data, ", ""))
    spec.write_text(spec.read_text().replace("nas:/grid", "/srv/grid").replace("name: shape", "name: shape\nprovider: openstack"))
    with pytest.raises(
        InputError, match=r"shares.0.source: /srv/grid is no HOST:/DIRECTORY; a directory of this machine is for containers"
    ):
        load(spec)


def test_names_of_scenarios_are_their_own() -> None:
    paths = [*ROOT.glob("inventories/*/cluster.yml"), *ROOT.glob("roles/*/molecule/*/cluster.yml")]
    names = [load(path).name for path in paths]
    assert sorted(set(names)) == sorted(names), "two sites of one name would take each other's nodes for their own"


#: What is put wrong: (replace, by, the line's mark, words the message must have).
MISTAKES = {
    "unknown key, top": (
        "provider: podman",
        "provder: podman",
        "provder",
        ["provder", "unknown key", "'provider'", "known keys here: name,"],
    ),
    "unknown key, node kind": (
        "    services: [nfs_client",
        "    service: [nfs_client",
        "service: [",
        ["nodes.compute.service", "'services'"],
    ),
    "unknown key, flavor": ("cpus: 2", "cpu: 2", "cpu: 2", ["nodes.frontend.flavor.cpu", "'cpus'", "cpus, memory"]),
    "unknown key, volume": ("        mount: /scratch", "        mountpoint: /scratch", "mountpoint", ["volumes.0.mountpoint", "'mount'"]),
    "unknown key, network": ("cidr: auto", "cird: auto", "cird", ["network.cird", "'cidr'"]),
    "wrong type, text for a number": ("count: 2 ", "count: two ", "count: two", ["nodes.compute.count", "integer", "'two'"]),
    "wrong type, list for a mapping": ("flavor: {cpus: 2, memory: 2048}", "flavor: [2]", "flavor", ["nodes.frontend.flavor"]),
    "wrong type, text for a list": (
        "services: [nfs_client, slurm_node]",
        "services: slurm_node",
        "services: slurm",
        ["nodes.compute.services", "'slurm_node'"],
    ),
    "count below zero": ("count: 2 ", "count: -1 ", "count: -1", ["nodes.compute.count", "0", "-1"]),
    "count too large": ("count: 2 ", "count: 1000 ", "count: 1000", ["nodes.compute.count", "999", "1000"]),
    "no CPU": ("cpus: 2", "cpus: 0", "cpus: 0", ["nodes.frontend.flavor.cpus", "1", "0"]),
    "too little memory": ("memory: 2048", "memory: 16", "memory: 16", ["nodes.frontend.flavor.memory", "256", "16"]),
    "unknown service": (
        "slurm_node]",
        "slurm_nodes]",
        "slurm_nodes",
        ["nodes.compute.services", "unknown service 'slurm_nodes'", "'slurm_node'"],
    ),
    "service twice": (
        "[nfs_client, slurm_node]",
        "[slurm_node, slurm_node]",
        "  compute:",
        ["nodes.compute", "service 'slurm_node' is declared twice"],
    ),
    "two controllers": ("count: 1", "count: 2", "count: 2", ["nodes.frontend.count", "2 nodes would offer", "one node may"]),
    "two servers for one share": (
        "services: [nfs_client, slurm_node]",
        "services: [nfs_client, slurm_node, nfs_server]",
        "services: [nfs_client, slurm_node, nfs_server]",
        ["which of frontend001, compute001, compute002 exports /grid?", "shares: [{path: /grid, server: frontend001}]"],
    ),
    "a share of a node that is no server": (
        "nodes:\n",
        "shares: [{path: /grid, server: compute}]\nnodes:\n",
        "shares:",
        ["shares.0.server", "'compute' is no node with nfs_server", "there are frontend001"],
    ),
    "a share that is here and elsewhere": (
        "nodes:\n",
        "shares: [{path: /grid, server: frontend, source: 'nas:/grid'}]\nnodes:\n",
        "shares:",
        ["shares.0", "a server of the site and a source outside of it"],
    ),
    "a share within another": (
        "nodes:\n",
        "shares: [/grid, /grid/data]\nnodes:\n",
        "shares:",
        ["shares.1", "/grid/data and /grid lie in each other"],
    ),
    "a server that serves nothing": (
        "nodes:\n",
        "shares: [{path: /grid, source: 'nas:/grid'}]\nnodes:\n",
        "services: [nfs_server",
        ["nodes.frontend.services", "frontend001 has nfs_server, and no share comes from it"],
    ),
    "no share": ("nodes:\n", "shares: []\nnodes:\n", "shares:", ["shares", "at least 1 item"]),
    "unknown key, share": (
        "nodes:\n",
        "shares: [{path: /grid, sorce: 'nas:/grid'}]\nnodes:\n",
        "shares:",
        ["shares.0.sorce", "unknown key", "'source'", "known keys here: path, server, source"],
    ),
    "no controller for the commands": (
        "services: [nfs_server, slurm_accounting, slurm_controller, arc_ce]",
        "services: [nfs_server, slurm_client]",
        "services: [nfs_server, slurm_client]",
        ["slurm_client needs slurm_controller on one node", "no node offers it"],
    ),
    "a CE without Slurm's commands": (
        "slurm_controller, arc_ce]",
        "slurm_controller]\n  ce:\n    count: 1\n    services: [nfs_client, arc_ce]",
        "services: [nfs_client, arc_ce]",
        ["nodes.ce.services", "arc_ce needs slurm_client or slurm_controller or slurm_node on the same node", "add slurm_client"],
    ),
    "compute nodes that do not see the session directories": (
        "services: [nfs_client, slurm_node]",
        "services: [slurm_node]",
        "services: [nfs_server",
        ["nodes.frontend.services", "the session directories of its jobs", "compute sees none: add nfs_client there"],
    ),
    "REST without its computing element": (
        "services: [nfs_client",
        "services: [arc_rest, nfs_client",
        "services: [arc_rest",
        ["nodes.compute.services", "arc_rest needs arc_ce on the same node"],
    ),
    "no server for the clients": ("nfs_server, ", "", "services: [nfs_client", ["nfs_client needs nfs_server"]),
    "duplicate volume": (
        "        mount: /scratch\n",
        "        mount: /scratch\n      - {name: scratch, size: 1G, mount: /other}\n",
        "  compute:",
        ["nodes.compute", "volume 'scratch' is declared twice"],
    ),
    "duplicate mount point": (
        "        mount: /scratch\n",
        "        mount: /scratch\n      - {name: other, size: 1G, mount: /scratch/}\n",
        "  compute:",
        ["nodes.compute", "mount point '/scratch' is declared twice"],
    ),
    "size without a unit": (
        "size: 1G",
        "size: '1000'",
        "size: '1000'",
        ["nodes.compute.volumes.0.size", "'1000' is not a size", "such as 10G"],
    ),
    "size of nothing": ("size: 1G", "size: 0G", "size: 0G", ["'0G' is not a size"]),
    "too small for xfs": ("size: 4G", "size: 100M", "- {name: grid", ["100M is too small for xfs", "300M"]),
    "too small for ext4": ("size: 1G", "size: 1M", "- name: scratch", ["1M is too small for ext4", "8M"]),
    "unknown file system": (
        "filesystem: xfs",
        "filesystem: zfs",
        "zfs",
        ["nodes.frontend.volumes.0.filesystem", "'ext4' or 'xfs'", "'zfs'"],
    ),
    "relative mount point": ("mount: /scratch", "mount: scratch", "mount: scratch", ["nodes.compute.volumes.0.mount", "'scratch'"]),
    "bad name": ("name: trial", "name: Trial_1", "name: Trial_1", ["name", "'Trial_1'"]),
    "bad kind": ("  compute:", "  com pute:", "com pute:", ["com pute"]),
    "bad domain": ("domain: grid.test", "domain: test", "domain: test", ["domain", "'test'"]),
    "unknown provider": ("provider: podman", "provider: docker", "provider: docker", ["provider", "'podman'", "'docker'"]),
    "no network": ("cidr: auto", "cidr: 10.1.2.300/24", "cidr: 10.1", ["network.cidr", "10.1.2.300", "10.42.0.0/24"]),
    "host bits set": ("cidr: auto", "cidr: 10.1.2.3/24", "cidr: 10.1", ["network.cidr", "10.1.2.3/24 has host bits set"]),
    "public network": ("cidr: auto", "cidr: 8.8.8.0/24", "cidr: 8.8", ["network.cidr", "8.8.8.0/24 is not a private IPv4 network"]),
    "network too small": ("cidr: auto", "cidr: 10.1.2.0/30", "cidr: 10.1", ["network.cidr", "/28 or larger"]),
    "count as text": ("count: 2 ", "count: '2' ", "count: '2'", ["nodes.compute.count", "integer", "'2'"]),
    "count as a fraction": ("count: 2 ", "count: 2.0 ", "count: 2.0", ["nodes.compute.count", "integer", "2.0"]),
    "memory as text": ("memory: 2048", "memory: '2048'", "memory: '2048'", ["nodes.frontend.flavor.memory", "integer"]),
    "kind all": ("  compute:", "  all:", "  all:", ["nodes.all", "Ansible's own name"]),
    "kind ungrouped": ("  compute:", "  ungrouped:", "  ungrouped:", ["nodes.ungrouped", "Ansible's own name"]),
    "kind localhost": ("  compute:", "  localhost:", "  localhost:", ["nodes.localhost", "Ansible's own name"]),
    "kind called as a service": ("  compute:", "  monitoring:", "  monitoring:", ["nodes.monitoring", "is a service"]),
    "kind called as a node": ("  compute:", "  frontend001:", "  frontend001:", ["nodes.frontend001", "a node of kind frontend"]),
    "kind called as a service of the site": (
        "nodes:",
        "extra_services: [compute]\nnodes:",
        "  compute:",
        ["nodes.compute", "is a service"],
    ),
    "service of the site called as one of the kit": (
        "nodes:",
        "extra_services: [arc_ce]\nnodes:",
        "extra_services",
        ["extra_services", "'arc_ce' is taken"],
    ),
    "service of the site called all": ("nodes:", "extra_services: [all]\nnodes:", "extra_services", ["extra_services", "'all' is taken"]),
    "number twice": ("count: 2 ", "without: [2, 2]\n    count: 2 ", "  compute:", ["nodes.compute", "number '2' is declared twice"]),
    "number zero": ("count: 2 ", "without: [0]\n    count: 2 ", "without", ["nodes.compute.without.0", "greater than or equal to 1"]),
    "numbers beyond three digits": (
        "count: 2 ",
        "without: [1, 2]\n    count: 998 ",
        "  compute:",
        ["nodes.compute", "numbers up to 1000", "end at 999"],
    ),
    "missing key": ("        size: 1G\n", "", "- name: scratch", ["nodes.compute.volumes.0.size", "missing"]),
    "no nodes": (GOOD[GOOD.index("nodes:") :], "nodes: {}\n", "nodes: {}", ["nodes", "at least 1"]),
}


#: Mount points that hide what the system needs, and how they may be written.
HIDING = [
    "/",
    "//",
    "/usr",
    "/usr/",
    "/usr/local/share",
    "/etc/../var",
    "/var",
    "/var//lib",
    "/etc/cvmfs",
    "/root/.ssh",
    "/run/x",
    "/./proc",
]


@pytest.mark.parametrize("mount", HIDING)
@pytest.mark.parametrize(
    ("old", "key"),
    [("        mount: /scratch", "nodes.compute.volumes.0.mount"), ("domain: grid.test", "shares.0")],
    ids=["mount", "share"],
)
def test_a_mount_that_hides_the_system_is_refused(spec: Path, mount: str, old: str, key: str) -> None:
    new = f"        mount: {mount}" if "mount" in old else f"shares: [{mount}]"
    text = GOOD.replace(old, new, 1)
    spec.write_text(text)
    with pytest.raises(InputError) as caught:
        load(spec)
    message = str(caught.value)
    assert message.startswith(f"{spec}:{line_of(text, new)}: {key}: {mount!r} "), message
    assert "hide the system's own files" in message or "without .." in message


@pytest.mark.parametrize(
    ("written", "means"),
    [("/scratch/", "/scratch"), ("//data//x/./y/", "/data/x/y"), ("/var/lib/cvmfs", "/var/lib/cvmfs"), ("/home", "/home")],
)
def test_a_mount_point_has_one_form(spec: Path, written: str, means: str) -> None:
    spec.write_text(GOOD.replace("mount: /scratch", f"mount: {written}"))
    assert load(spec).nodes["compute"].volumes[0].mount == means


@pytest.mark.parametrize(("old", "new", "mark", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_with_file_line_and_what_is_right(spec: Path, old: str, new: str, mark: str, words: list[str]) -> None:
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    spec.write_text(text)
    with pytest.raises(InputError) as caught:
        load(spec)
    message = str(caught.value)
    assert message.startswith(f"{spec}:{line_of(text, mark)}: "), message
    for word in words:
        assert word in message, message
    assert caught.value.exit_code == 2
    assert "pydantic" not in message
    assert "Traceback" not in message


def test_several_mistakes_are_counted_and_the_misspelt_key_comes_first(spec: Path) -> None:
    spec.write_text(GOOD.replace("count: 2 ", "cuont: 2 ").replace("cpus: 2", "cpus: many"))
    with pytest.raises(InputError, match=r"nodes\.compute\.cuont: unknown key, did you mean 'count'\?") as caught:
        load(spec)
    assert "2 more mistake(s) after this one" in str(caught.value)


def test_every_count_zero_is_no_site(spec: Path) -> None:
    spec.write_text("name: x\nnodes:\n  compute: {count: 0}\n")
    with pytest.raises(InputError, match="every count is 0"):
        load(spec)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name: [unclosed\nnodes: {}\n", "not YAML"),
        (b"\tname: x\n", "not YAML"),
        (b"name: a\nname: b\n", "not YAML"),
        (b"- a\n- list\n", "must be a mapping"),
        (b"", "must be a mapping"),
        (b"name: \xff\xfe\n", "is not UTF-8"),
    ],
)
def test_a_file_that_is_no_mapping_is_one_clear_error(spec: Path, content: bytes, words: str) -> None:
    spec.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        load(spec)
    assert str(spec) in str(caught.value)


def test_a_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.yml: cannot be read: No such file"):
        load(tmp_path / "nothing.yml")


def test_a_directory_for_a_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load(tmp_path)


# ---------------------------------------------------------------------------------------------- sizes


@given(st.integers(min_value=1, max_value=10**6), st.sampled_from("MGT"), st.sampled_from(["", "B", "iB"]))
def test_sizes_are_powers_of_1024(number: int, unit: str, suffix: str) -> None:
    assert parse_size(f"{number}{unit}{suffix}") == number * 1024 ** {"M": 2, "G": 3, "T": 4}[unit]


@given(st.text(max_size=6).filter(lambda text: text.rstrip("iB")[-1:] not in {"M", "G", "T"}))
def test_a_size_without_its_unit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size") as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


def test_format_is_for_existing_volumes(spec: Path) -> None:
    spec.write_text(
        "name: a\nprovider: openstack\nnodes:\n  n:\n    count: 1\n    volumes: [{name: d, size: 1G, mount: /d, format: true}]\n"
    )
    with pytest.raises(InputError, match=r"format is for existing volumes, which have an id"):
        load(spec)


# ---------------------------------------------------------------------------------------------- scale writes the file


def test_scale_changes_the_number_and_nothing_else(spec: Path) -> None:
    line = write_count(spec, "compute", 17)
    assert line == line_of(GOOD, "count: 2 ")
    assert spec.read_text() == GOOD.replace("count: 2 ", "count: 17 ")


def test_scale_also_finds_a_count_written_inline(spec: Path) -> None:
    spec.write_text("name: x\nnodes:\n  compute: {services: [], count: 3, flavor: {cpus: 1}}\n")
    write_count(spec, "compute", 12)
    assert spec.read_text() == "name: x\nnodes:\n  compute: {services: [], count: 12, flavor: {cpus: 1}}\n"


def test_scale_keeps_the_files_mode(spec: Path) -> None:
    spec.chmod(0o640)
    write_count(spec, "compute", 3)
    assert spec.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("kind", "count", "words"),
    [
        ("computes", 3, "did you mean 'compute'"),
        ("compute", 1000, "999"),
        ("compute", -1, "greater than or equal to 0"),
        ("frontend", 2, "one node may"),
    ],
)
def test_a_scale_that_cannot_hold_leaves_the_file_alone(spec: Path, kind: str, count: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        write_count(spec, kind, count)
    assert spec.read_text() == GOOD
    assert list(spec.parent.iterdir()) == [spec], "no scratch file is left"


KINDS = "name: x\nnodes:\n"


@pytest.mark.parametrize(
    "written",
    [
        KINDS + "  compute: {count: &few 2}\n  gpu: {count: *few}\n",
        KINDS + "  gpu: &small\n    count: 2\n  compute:\n    <<: *small\n    services: []\n",
        KINDS + "  compute: &small\n    count: 2\n  gpu:\n    <<: *small\n",
        KINDS + "  gpu: &small {count: 2}\n  compute: *small\n",
        KINDS + "  compute:\n    count:\n      2\n",
    ],
    ids=["anchor", "merge key", "merged elsewhere", "alias of a kind", "on the next line"],
)
def test_a_count_that_is_not_the_kinds_own_is_refused_with_its_line(spec: Path, written: str) -> None:
    spec.write_text(written)
    with pytest.raises(InputError, match=r"cluster\.yml:\d+: nodes\.compute\.count: cannot be set .*\n.*write count: 5 ") as caught:
        write_count(spec, "compute", 5)
    assert caught.value.exit_code == 2
    assert spec.read_text() == written


@pytest.mark.parametrize(
    ("written", "then"),
    [
        ("  gpu: {count: &few 2}\n  compute: {count: *few}\n", "  gpu: {count: &few 2}\n  compute: {count: 5}\n"),
        ("  compute: {'count': 0x2 }\n", "  compute: {'count': 5 }\n"),
        ("  compute:\n    count : 1_0 # ten\n", "  compute:\n    count : 5 # ten\n"),
    ],
    ids=["alias", "hexadecimal", "underscore"],
)
def test_a_count_is_replaced_whole_however_it_is_written(spec: Path, written: str, then: str) -> None:
    spec.write_text(KINDS + written)
    write_count(spec, "compute", 5)
    assert spec.read_text() == KINDS + then


# ---------------------------------------------------------------------------------------------- remove writes the file


def test_a_removed_number_is_not_given_again(spec: Path) -> None:
    write_count(spec, "compute", 4)
    assert write_removal(spec, ["compute002"]) == {"compute": line_of(GOOD, "count: 2 ")}
    assert list(load(spec).node_names()) == ["frontend001", "compute001", "compute003", "compute004"]
    assert "    count: 3  # two will do\n    without: [2]\n    services: [nfs_client" in spec.read_text()
    write_count(spec, "compute", 4)
    assert list(load(spec).node_names())[1:] == ["compute001", "compute003", "compute004", "compute005"]
    write_count(spec, "compute", 1)
    assert list(load(spec).node_names())[1:] == ["compute001"]


def test_removed_numbers_are_given_again_where_that_is_asked_for(spec: Path) -> None:
    write_count(spec, "compute", 5)
    write_removal(spec, ["compute001", "compute002", "compute003"])
    write_count(spec, "compute", 4, refill=True)
    assert list(load(spec).node_names())[1:] == ["compute001", "compute002", "compute004", "compute005"]
    write_count(spec, "compute", 6, refill=True)
    assert list(load(spec).node_names())[1:] == [f"compute00{number}" for number in range(1, 7)]
    with pytest.raises(InputError, match=r"nodes\.compute\.count: has 6 nodes by now"):
        write_count(spec, "compute", 5, refill=True)


def test_removing_the_highest_number_is_a_smaller_count(spec: Path) -> None:
    write_removal(spec, ["compute002"])
    assert spec.read_text() == GOOD.replace("count: 2 ", "count: 1 ")


def test_several_nodes_are_removed_at_once(spec: Path) -> None:
    spec.write_text(KINDS + "  compute: {count: 3, without: [2], services: []}\n  gpu: {services: [], count: 2}\n")
    assert write_removal(spec, ["compute003", "gpu001", "compute001"]) == {"compute": 3, "gpu": 4}
    assert (
        spec.read_text()
        == KINDS + "  compute: {count: 1, without: [1, 2, 3], services: []}\n  gpu: {services: [], count: 1, without: [1]}\n"
    )
    assert list(load(spec).node_names()) == ["compute004", "gpu002"]


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        (["compute009"], "no node 'compute009' is declared, did you mean"),
        (["compute001", "frontend001"], "no node offers it"),
        (["computer"], "declared: frontend001, compute001, compute002"),
    ],
)
def test_a_removal_that_cannot_hold_leaves_the_file_alone(spec: Path, nodes: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        write_removal(spec, nodes)
    assert spec.read_text() == GOOD


def test_numbers_in_a_list_of_many_lines_are_left_to_people(spec: Path) -> None:
    written = KINDS + "  compute:\n    without:\n      - 2\n    count: 3\n"
    spec.write_text(written)
    with pytest.raises(InputError, match=r"write count: 2, without: \[1, 2\] for it by hand"):
        write_removal(spec, ["compute001"])
    assert spec.read_text() == written


# ---------------------------------------------------------------------------------------------- schema


def test_the_schema_names_every_key_and_forbids_others() -> None:
    schema = Cluster.model_json_schema()
    json.dumps(schema)
    assert schema["additionalProperties"] is False
    for name, part in schema["$defs"].items():
        assert part.get("additionalProperties") is False, name
    assert set(schema["properties"]) == set(Cluster.model_fields)


def test_every_service_is_explained() -> None:
    assert all(text and text == textwrap.dedent(text).strip() for text in (it.text for it in SERVICES.values()))


CLOUD = GOOD.replace("provider: podman", "provider: openstack").replace("count: 1", "count: 1\n    public: true", 1)


def test_a_cloud_site_holds(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yml"
    path.write_text(CLOUD + "openstack: {cloud: mine, availability_zone: nova}\nimage: {name: debian-13}\n")
    spec = load(path)
    assert spec.openstack.cloud == "mine"
    assert spec.nodes["frontend"].public
    assert [rule.port_range for rule in spec.security_rules] == [(22, 22)]


@pytest.mark.parametrize("site", sorted(path.parent.name for path in (ROOT / "inventories").glob("*/cluster.yml")))
def test_the_example_sites_hold(site: str) -> None:
    assert load(ROOT / "inventories" / site / "cluster.yml").node_names()


@pytest.mark.parametrize(
    ("addition", "says"),
    [
        ("security_rules: [{ports: ssh}]\n", ["security_rules", "22 or 8000-8100"]),
        ("security_rules: [{ports: 80-22}]\n", ["22 or 8000-8100"]),
        ("security_rules: [{ports: '70000'}]\n", ["no port"]),
        ("security_rules: [{ports: '22', protocol: icmp}]\n", ["icmp has no ports"]),
        ("security_rules: [{ports: '22', sources: [everywhere]}]\n", ["192.0.2.0/24"]),
        ("security_rules: [{ports: '22', kinds: [fronted]}]\n", ["no node kind 'fronted'", "'frontend'"]),
        ("security_rules: [{ports: '8443', services: [arc_rets]}]\n", ["security_rules.0.services", "no service 'arc_rets'", "'arc_rest'"]),
        ("security_rules: [{port: '22'}]\n", ["unknown key", "'ports'"]),
        ("openstack: {clod: mine}\n", ["unknown key", "'cloud'"]),
        ("image: {name: debian-13, user: 'not a name'}\n", ["image.user"]),
    ],
)
def test_mistakes_of_a_cloud_site(tmp_path: Path, addition: str, says: list[str]) -> None:
    path = tmp_path / "cluster.yml"
    path.write_text(CLOUD + addition)
    with pytest.raises(InputError) as caught:
        load(path)
    assert [word for word in says if word not in str(caught.value)] == [], str(caught.value)


@pytest.mark.parametrize(
    ("was", "becomes", "says"),
    [
        ("cidr: auto", "cidr: auto\n  subnet: theirs", "give its name too"),
        ("cidr: auto", "cidr: auto\n  name: theirs\n  router: mine", "leave router out"),
        ("size: 1G", "size: 1G\n        id: 12345678-1234-1234-1234-123456789abc", "2 nodes cannot all have it"),
        ("size: 1G", "size: 1G\n        id: mine", "nodes.compute.volumes.0.id"),
        ("count: 2", "count: 2\n    root_volume: large", "is not a size"),
    ],
)
def test_mistakes_in_what_only_a_cloud_has(tmp_path: Path, was: str, becomes: str, says: str) -> None:
    path = tmp_path / "cluster.yml"
    path.write_text(CLOUD.replace(was, becomes))
    with pytest.raises(InputError, match=says):
        load(path)


@pytest.mark.parametrize("addition", ["openstack: {cloud: mine}\n", "image: {name: debian-13}\n"])
def test_a_site_of_containers_has_no_cloud(tmp_path: Path, addition: str) -> None:
    path = tmp_path / "cluster.yml"
    path.write_text(GOOD + addition)
    with pytest.raises(InputError, match="is for provider openstack"):
        load(path)

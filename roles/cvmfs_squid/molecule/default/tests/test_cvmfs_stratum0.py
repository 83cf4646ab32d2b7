"""The repositories are published, whole, and served; what must stay on the node stays there."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
from testinfra.host import Host

testinfra_hosts = ["ansible://cvmfs_stratum0"]

FQRN = "sw.grid.test"
PORT = 8000


def journal(host: Host, unit: str) -> str:
    return str(host.run("journalctl --no-pager --lines=30 --unit=%s", unit).stdout)


def cvmfs(host: Host, *arguments: str) -> Any:
    return json.loads(host.check_output(shlex.join(["gridstead-cvmfs", *arguments, "--json"])))


def other(host: Host) -> Host:
    return host.get_host("ansible://stranger001", ansible_inventory=host.backend.ansible_runner.inventory_file)


def ask(host: Host, path: str, *options: str) -> tuple[int, dict[str, str]]:
    """The status of a request from another node, and the answer's headers."""
    address = host.backend.get_variables()["gridstead_address"]
    program = (
        "import json, sys, urllib.request, urllib.error\n"
        "request = urllib.request.Request(sys.argv[1], method=sys.argv[2])\n"
        "try: answer = urllib.request.urlopen(request, timeout=20)\n"
        "except urllib.error.HTTPError as error: answer = error\n"
        "print(json.dumps([answer.status, {name.lower(): value for name, value in answer.headers.items()}]))\n"
    )
    method = options[0] if options else "GET"
    said = other(host).check_output(shlex.join(["python3", "-c", program, f"http://{address}:{PORT}{path}", method]))
    status, headers = json.loads(said)
    return status, headers


def test_web_server(host: Host) -> None:
    service = host.service("nginx")
    assert service.is_running, journal(host, "nginx")
    assert service.is_enabled
    assert not host.socket("tcp://0.0.0.0:80").is_listening, "the package's own page is up"


@pytest.mark.parametrize("name", [FQRN, "empty.grid.test"])
def test_whole_repository_is_right(host: Host, name: str) -> None:
    assert cvmfs(host, "check", name)["problems"] == []


def test_the_example_is_in_chunks_and_nested_catalogues(host: Host) -> None:
    [data] = [entry for entry in cvmfs(host, "ls", FQRN, "/software/hello/1.0/share") if entry["name"] == "data.bin"]
    assert data["size"] > 24 * 10**6
    assert data["chunked"]
    [version] = [entry for entry in cvmfs(host, "ls", FQRN, "/software/hello") if entry["name"] == "1.0"]
    assert version["nested"]
    [link] = [entry for entry in cvmfs(host, "ls", FQRN, "/software/hello") if entry["name"] == "current"]
    assert link["symlink"] == "1.0"


def test_the_example_runs(host: Host) -> None:
    tree = cvmfs(host, "transaction", FQRN)["tree"]
    said = host.check_output(f"{tree}/software/hello/current/bin/hello")
    cvmfs(host, "abort", FQRN)
    assert "26214400 bytes, crc32" in said


def test_a_second_publication_is_served(host: Host) -> None:
    before = cvmfs(host, "info", FQRN)["revision"]
    tree = cvmfs(host, "transaction", FQRN)["tree"]
    host.check_output(f"date > {tree}/date")
    report = cvmfs(host, "publish", FQRN)
    assert report["changed"]
    assert report["revision"] == before + 1
    assert report["read"] == 1, "what has not changed is not read"
    published = host.check_output(f"curl --silent --fail http://127.0.0.1:{PORT}/cvmfs/{FQRN}/.cvmfspublished | head -n 5 | grep ^S")
    assert published == f"S{before + 1}"
    cvmfs(host, "rollback", FQRN, str(before))
    assert cvmfs(host, "check", FQRN)["problems"] == []
    assert "date" not in [entry["name"] for entry in cvmfs(host, "ls", FQRN)]


def test_what_says_the_revision_is_fresh_and_objects_are_kept(host: Host) -> None:
    # The last one tells a stratum 1 that it may replicate from here.
    for name in (".cvmfspublished", ".cvmfswhitelist", ".cvmfs_master_replica"):
        status, headers = ask(host, f"/cvmfs/{FQRN}/{name}")
        assert (status, headers["cache-control"]) == (200, "max-age=3"), name
    catalog = cvmfs(host, "info", FQRN)["catalog"]
    status, headers = ask(host, f"/cvmfs/{FQRN}/data/{catalog[:2]}/{catalog[2:]}C")
    assert (status, headers["cache-control"]) == (200, "max-age=259200")


@pytest.mark.parametrize(
    "path", ["/", "/cvmfs/", f"/cvmfs/{FQRN}/", f"/cvmfs/{FQRN}/data/txn/", "/cvmfs/../../etc/passwd", "/cvmfs/../keys"]
)
def test_nothing_else_is_served(host: Host, path: str) -> None:
    assert ask(host, path)[0] in (400, 404)


def test_nothing_can_be_put(host: Host) -> None:
    assert ask(host, f"/cvmfs/{FQRN}/.cvmfspublished", "PUT")[0] == 403


@pytest.mark.parametrize("name", [FQRN, "empty.grid.test"])
def test_private_keys_are_private(host: Host, name: str) -> None:
    for suffix in ("masterkey", "key"):
        key = host.file(f"/etc/cvmfs/keys/{name}.{suffix}")
        assert (key.user, key.mode) == ("root", 0o600)
    assert host.file(f"/etc/cvmfs/keys/{name}.pub").mode == 0o644
    assert "PRIVATE" not in host.file(f"/etc/cvmfs/keys/{name}.pub").content_string


def test_upkeep(host: Host) -> None:
    timer = host.service(f"cvmfs-stratum0@{FQRN}.timer")
    assert timer.is_enabled
    assert timer.is_running
    unit = f"cvmfs-stratum0@{FQRN}.service"
    # As if it were about to end.
    ended = int(cvmfs(host, "resign", "--days", "5", FQRN)["expires"])
    assert host.run("systemctl start %s", unit).rc == 0, journal(host, unit)
    kept = cvmfs(host, "resign", "--unless", "20", FQRN)
    assert not kept["signed"]
    assert int(kept["expires"]) > ended + 20 * 86400


def test_a_wrong_call_is_one_clear_line(host: Host) -> None:
    for arguments in ("publish nowhere.grid.test /tmp", f"publish {FQRN} /nowhere", f"rollback {FQRN} nothing", "list --what"):
        said = host.run(f"gridstead-cvmfs {arguments}")
        assert said.rc == 2, arguments
        assert said.stderr.startswith("gridstead-cvmfs: ")
        assert len(said.stderr.splitlines()) <= 2

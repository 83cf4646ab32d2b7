"""Clients of the cluster get repositories through the cache, from the cache, and nothing else through it."""

from __future__ import annotations

from testinfra.host import Host

from role_support import instances, run_role, started_anew

testinfra_hosts = ["ansible://cvmfs_squid"]

FQRN = "cached.grid.test"


def journal(host: Host) -> str:
    return str(host.run("journalctl --no-pager --lines=30 --unit=squid").stdout)


def other(host: Host, name: str) -> Host:
    return host.get_host(f"ansible://{name}", ansible_inventory=host.backend.ansible_runner.inventory_file)


def address(host: Host) -> str:
    return str(host.backend.get_variables()["gridstead_address"])


def ask(host: Host, path: str, *, by: str = "compute001", server: str | None = None, method: str = "GET") -> tuple[int, str]:
    """The status of a request through the cache, and what the cache says of where it was."""
    url = f"http://{server or address(other(host, 'frontend001')) + ':8000'}{path}"
    said = other(host, by).run(
        "curl --silent --output /dev/null --max-time 20 --request %s --proxy http://%s:3128 --write-out '%%{http_code} %%header{cache-status}' %s",
        method,
        address(host),
        url,
    )
    status, _, cache = said.stdout.partition(" ")
    return int(status), cache


def test_service(host: Host) -> None:
    service = host.service("squid")
    assert service.is_running, journal(host)
    assert service.is_enabled


def test_objects_come_from_the_cache_the_second_time(host: Host) -> None:
    name = other(host, "frontend001").check_output(f"cd /srv/cvmfs/{FQRN} && ls data/??/*C | head -n 1")
    path = f"/cvmfs/{FQRN}/{name}"
    assert ask(host, path)[0] == 200
    status, cache = ask(host, path)
    assert status == 200
    assert ";hit" in cache, cache


def test_a_new_revision_is_not_held_back(host: Host) -> None:
    frontend = other(host, "frontend001")
    assert ask(host, f"/cvmfs/{FQRN}/.cvmfspublished")[0] == 200
    frontend.check_output("mkdir -p /root/tree && date > /root/tree/date && gridstead-cvmfs publish %s /root/tree", FQRN)
    # Above the line of dashes: the signature below it may have any byte.
    revision = "sed -n '/^--$/q; s/^S//p'"
    wanted = frontend.check_output(f"{revision} /srv/cvmfs/{FQRN}/.cvmfspublished")
    read = f"curl --silent --proxy http://{address(host)}:3128 http://{address(frontend)}:8000/cvmfs/{FQRN}/.cvmfspublished | {revision}"
    # The manifest may be kept for 3 seconds, no longer.
    waiting = f"for n in $(seq 40); do [ \"$({read})\" = '{wanted}' ] && exit 0; sleep 0.3; done; exit 1"
    assert other(host, "compute001").run(waiting).rc == 0


def test_what_else_is_refused(host: Host) -> None:
    path = f"/cvmfs/{FQRN}/.cvmfspublished"
    assert ask(host, path, by="stranger001")[0] == 403, "a node that is no client"
    assert ask(host, path, server="192.0.2.1")[0] == 403, "a server of no repository"
    assert ask(host, "/etc/passwd")[0] == 403, "a path that is not of CVMFS"
    assert ask(host, path, method="POST")[0] == 403
    assert ask(host, path, server=f"{address(other(host, 'frontend001'))}:22")[0] == 403, "a port of no web server"


def test_a_client_reads_through_it_and_goes_on_without_it(host: Host) -> None:
    frontend, client = other(host, "frontend001"), other(host, "compute001")
    mount = f"/cvmfs/{FQRN}"

    def publish(name: str) -> None:
        """A new file, seen by the client."""
        frontend.check_output("mkdir -p /root/tree && head -c 3000 /dev/urandom | base64 > /root/tree/%s", name)
        frontend.check_output("gridstead-cvmfs publish %s /root/tree", FQRN)
        seen = client.run(
            "for n in $(seq 60); do systemctl reload gridstead-cvmfs@%s; [ -e %s/%s ] && exit 0; sleep 0.5; done; exit 1", FQRN, mount, name
        )
        assert seen.rc == 0, client.run("journalctl --no-pager --lines=30 --unit=gridstead-cvmfs@%s", FQRN).stdout

    def attribute(name: str, path: str = mount) -> str:
        return str(client.check_output("python3 -c %s", f"import os; print(os.getxattr('{path}', '{name}').decode())"))

    publish("through")
    wanted = frontend.check_output("sha256sum < /root/tree/through")
    assert client.check_output("sha256sum < %s/through", mount) == wanted
    assert attribute("user.proxy") == f"http://{address(host)}:3128"
    digest = attribute("user.hash", f"{mount}/through")
    assert ";hit" in ask(host, f"/cvmfs/{FQRN}/data/{digest[:2]}/{digest[2:]}")[1], "the client has not fetched it through the cache"
    publish("without")
    wanted = frontend.check_output("sha256sum < /root/tree/without")
    host.check_output("systemctl stop squid")
    try:
        assert client.check_output("sha256sum < %s/without", mount) == wanted
        assert attribute("user.proxy") == "DIRECT"
    finally:
        host.check_output("systemctl start squid")


def test_a_new_node_is_let_in_and_the_cache_is_not_restarted(host: Host) -> None:
    """Also when the run that wrote its address ended before Squid read it."""
    path = f"/cvmfs/{FQRN}/.cvmfspublished"
    clients = {"cvmfs_squid_clients": [address(other(host, name)) for name in ("compute001", "stranger001")]}
    before = instances(host, "squid")
    try:
        run_role(host, "cvmfs_squid", clients, cut_off=True)
        assert ask(host, path, by="stranger001")[0] == 403
        run_role(host, "cvmfs_squid", clients)
        assert ask(host, path, by="stranger001")[0] == 200
        assert not started_anew(before, instances(host, "squid"))
        run_role(host, "cvmfs_squid", {**clients, "cvmfs_squid_disk": 900})
        assert started_anew(before, instances(host, "squid")) == {"squid"}, "its store is settled when it starts"
    finally:
        run_role(host, "cvmfs_squid", {"cvmfs_squid_clients": clients["cvmfs_squid_clients"][:1]})
    assert ask(host, path, by="stranger001")[0] == 403


def test_its_directory_is_its_own(host: Host) -> None:
    """A volume is root's at first."""
    directory = host.file("/var/spool/squid")
    assert (directory.user, directory.group, directory.mode) == ("proxy", "proxy", 0o750)

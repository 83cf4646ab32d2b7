"""Clients of the cluster get repositories through the cache, from the cache, and nothing else through it."""

from __future__ import annotations

from testinfra.host import Host

testinfra_hosts = ["ansible://cvmfs_squid"]

FQRN = "sw.grid.test"


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
    wanted = frontend.check_output(
        "strings /srv/cvmfs/%s/.cvmfspublished | grep ^S || grep -a ^S /srv/cvmfs/%s/.cvmfspublished", FQRN, FQRN
    )
    read = f"curl --silent --proxy http://{address(host)}:3128 http://{address(frontend)}:8000/cvmfs/{FQRN}/.cvmfspublished | grep -a ^S"
    # The manifest may be kept for 15 seconds, no longer.
    assert other(host, "compute001").run(f"for n in $(seq 25); do [ \"$({read})\" = '{wanted}' ] && exit 0; sleep 1; done; exit 1").rc == 0


def test_what_else_is_refused(host: Host) -> None:
    path = f"/cvmfs/{FQRN}/.cvmfspublished"
    assert ask(host, path, by="stranger001")[0] == 403, "a node that is no client"
    assert ask(host, path, server="192.0.2.1")[0] == 403, "a server of no repository"
    assert ask(host, "/etc/passwd")[0] == 403, "a path that is not of CVMFS"
    assert ask(host, path, method="POST")[0] == 403
    assert ask(host, path, server=f"{address(other(host, 'frontend001'))}:22")[0] == 403, "a port of no web server"

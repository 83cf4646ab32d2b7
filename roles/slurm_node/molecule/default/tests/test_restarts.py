"""Module gridstead_service with the real systemd: what a service started with is noted, and decides whether it is restarted.

On one node, and not on the one that keeps the site's munge key: another key there is the site's from then on.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from role_support import instances, run_role, started_anew

if TYPE_CHECKING:
    from pathlib import Path

    from testinfra.host import Host

testinfra_hosts = ["ansible://compute002"]


def test_a_run_that_ends_between_the_key_and_the_restart_is_made_good_by_the_next(host: Host, tmp_path: Path) -> None:
    """munged has the key in memory: a new file alone changes nothing, and the next run finds the file as it should be."""
    other = tmp_path / "other.key"
    other.write_bytes(os.urandom(128))
    before = instances(host, "munge")
    old = host.check_output("munge --no-input")
    try:
        run_role(host, "munge", {"munge_key_file": str(other)}, cut_off=True)
        assert host.file("/etc/munge/munge.key").content == other.read_bytes()
        assert host.run("echo %s | unmunge", old).rc == 0, "munged still has the old key"
        run_role(host, "munge", {"munge_key_file": str(other)})
        assert started_anew(before, instances(host, "munge")) == {"munge"}
        assert host.run("echo %s | unmunge", old).rc != 0
    finally:
        run_role(host, "munge")
    assert host.run("echo %s | unmunge", old).rc == 0


def test_what_it_started_with_is_noted_at_every_start(host: Host) -> None:
    """An operator's restart, a crash: the record is of the instance that runs, and there is none of one that does not."""
    record = "/run/gridstead/services/munge.service"
    key = host.file("/etc/munge/munge.key").sha256sum

    def noted() -> bool:
        wanted = [instances(host, "munge")["munge"], f"{key}  /etc/munge/munge.key"]
        return host.run("cat %s", record).stdout.splitlines() == wanted

    assert noted()
    host.check_output("systemctl restart munge")
    assert noted()
    before = instances(host, "munge")
    host.check_output("systemctl kill --signal=KILL munge; systemctl reset-failed munge; systemctl start munge")
    assert started_anew(before, instances(host, "munge"))
    assert noted()
    host.check_output("systemctl stop munge")
    assert not host.file(record).exists
    host.check_output("systemctl start munge")
    assert host.file("/run/gridstead/services").mode == 0o700, "the digest of a key is nobody's to read"


def test_another_run_restarts_nothing(host: Host) -> None:
    before = instances(host, "munge")
    run_role(host, "munge")
    assert not started_anew(before, instances(host, "munge"))

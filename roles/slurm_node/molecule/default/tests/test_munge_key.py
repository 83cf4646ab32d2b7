"""The site's key lies on the host that keeps it; secrets beside cluster.yml that were lost get it from there."""

import os
from pathlib import Path

from testinfra.host import Host

from role_support import instances, run_role

testinfra_hosts = ["ansible://slurm_controller"]


def test_secrets_that_were_lost_get_the_sites_key_back(host: Host) -> None:
    secret = Path(host.backend.get_variables()["gridstead_secrets"], "munge.key")
    key, before = secret.read_bytes(), instances(host, "munge")
    try:
        secret.write_bytes(os.urandom(128))
        run_role(host, "munge")
        assert secret.read_bytes() == key
    finally:
        secret.write_bytes(key)
    assert host.file("/etc/munge/munge.key").content == key
    assert instances(host, "munge") == before

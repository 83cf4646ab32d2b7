"""slurmdbd answers, its database has no password and no port, and the cluster's accounts and users are there."""

import pytest
from testinfra.host import Host

testinfra_hosts = ["ansible://slurm_accounting"]
SACCTMGR = "SLURM_CONF=/etc/slurm/sacctmgr.conf sacctmgr --noheader --parsable2"


@pytest.mark.parametrize("unit", ["mariadb", "slurmdbd"])
def test_service(host: Host, unit: str) -> None:
    service = host.service(unit)
    journal = host.run(f"journalctl --no-pager --lines=30 --unit={unit}").stdout
    assert service.is_running, journal
    assert service.is_enabled


def test_settings_are_private(host: Host) -> None:
    settings = host.file("/etc/slurm/slurmdbd.conf")
    assert (settings.user, settings.mode) == ("slurm", 0o600)
    assert not settings.contains("StoragePass")
    assert settings.contains("^PurgeJobAfter=12months$")


def test_database_has_no_port(host: Host) -> None:
    listening = host.check_output("ss --listening --tcp --numeric --processes --no-header")
    assert "slurmdbd" in listening
    assert "mariadbd" not in listening


def test_database_knows_slurm_by_its_socket(host: Host) -> None:
    assert host.check_output("runuser -u slurm -- mariadb --batch --skip-column-names -e 'SELECT CURRENT_USER()'") == "slurm@localhost"
    assert host.run("runuser -u nobody -- mariadb --user=slurm -e 'SELECT 1'").rc != 0


def test_associations(host: Host) -> None:
    cluster = host.backend.get_variables()["gridstead_cluster"]
    rows = host.check_output(f"{SACCTMGR} list associations format=cluster,account,user").splitlines()
    for row in ("grid|", "grid|grid", "users|", "users|alice", "users|bob", "atlas|grid"):
        assert f"{cluster}|{row}" in rows


def test_what_an_operator_added_stays(host: Host) -> None:
    host.check_output(f"{SACCTMGR} --immediate add account extra")
    assert "extra" in host.check_output(f"{SACCTMGR} list account format=account").splitlines()
    host.check_output(f"{SACCTMGR} --immediate delete account extra")


def test_slurmdbd_is_up_when_its_unit_is(host: Host) -> None:
    """Slurmctld on the same host is ordered after it and gives up for good when it does not answer."""
    host.check_output("systemctl restart slurmdbd")
    assert host.socket("tcp://0.0.0.0:6819").is_listening


def test_database_comes_back_by_itself(host: Host) -> None:
    host.check_output("systemctl restart mariadb")
    assert host.check_output(f"{SACCTMGR} list account format=account where account=grid") == "grid"

"""slurmctld runs with what the inventory says, and a slurm.conf it could not start with is refused."""

from typing import Any

import pytest
from testinfra.host import Host

from role_support import instances, run_role, started_anew

testinfra_hosts = ["ansible://slurm_controller"]
SERVICES = ("munge", "mariadb", "slurmdbd", "slurmctld")
CHECK = "/usr/local/libexec/gridstead/slurm-check"


def test_service(host: Host) -> None:
    service = host.service("slurmctld")
    journal = host.run("journalctl --no-pager --lines=30 --unit=slurmctld; tail -n 30 /var/log/slurm/slurmctld.log").stdout
    assert service.is_running, journal
    assert service.is_enabled
    assert host.run("scontrol ping").stdout.count("is UP") == 1, journal


def test_node_is_as_the_inventory_says(host: Host) -> None:
    address = host.backend.ansible_runner.get_variables("compute001")["gridstead_address"]
    node = host.check_output("scontrol --oneliner show node compute001").split()
    assert f"NodeAddr={address}" in node
    assert "CPUTot=4" in node
    assert "RealMemory=900" in node


def test_partitions(host: Host) -> None:
    assert host.check_output("sinfo --noheader --format='%P %l %N'").splitlines() == [
        "main* infinite compute[001-002]",
        "short 10:00 compute[001-002]",
    ]


def test_site_options_win(host: Host) -> None:
    config = host.check_output("scontrol show config")
    assert "MinJobAge               = 120 sec" in config
    assert "ProctrackType           = proctrack/linuxproc" in config
    assert "SchedulerParameters     = batch_sched_delay=0,sched_interval=7\n" in config, "a list is one word, with commas"
    assert "KillWait                = 30 sec" in config, "null takes the role's own away, and Slurm's default counts"


def test_site_options_leave_what_compute_nodes_need(host: Host) -> None:
    """Without enable_configless slurmctld gives no slurmd its configuration."""
    assert "SlurmctldParameters     = enable_configless,idle_on_node_suspend\n" in host.check_output("scontrol show config")


def test_waiting_job_is_accounted(host: Host) -> None:
    """A job that never ran: slurmdbd knows of it."""
    job = host.check_output("sbatch --parsable --hold --output=/dev/null --wrap=true")
    host.check_output(f"scancel {job}; for i in $(seq 50); do sacct -n -X -o state -j {job} | grep -q CANCELLED && break; sleep 0.1; done")
    assert "CANCELLED" in host.check_output(f"sacct --noheader --allocations --format=state --jobs={job}")


def test_good_configuration_passes(host: Host) -> None:
    address = host.backend.get_variables()["gridstead_address"]
    state = "stat --format='%n %i %Y' /var/lib/slurm/slurmctld/clustername; systemctl show --property=MainPID slurmctld"
    before = host.check_output(state)
    result = host.run(f"{CHECK} /etc/slurm/slurm.conf {address}")
    assert result.rc == 0, result.stderr
    assert host.check_output(state) == before


@pytest.mark.parametrize(
    ("edit", "error"),
    [
        ("$ a NoSuchOption=1", "unrecognized key: NoSuchOption"),
        ("s/Nodes=ALL/Nodes=nowhere/", "Invalid node names in partition main"),
        ("s,select/cons_tres,select/nonsense,", "Can't find plugin for select/nonsense"),
        ("s/RealMemory=900/RealMemory=much/", "is not a valid number"),
        ("s,^EpilogSlurmctld=.*,EpilogSlurmctld=/no/such/file,", "EpilogSlurmctld"),
    ],
)
def test_wrong_configuration_is_refused(host: Host, edit: str, error: str) -> None:
    address = host.backend.get_variables()["gridstead_address"]
    host.check_output(f"sed '{edit}' /etc/slurm/slurm.conf >/run/wrong.conf; ! cmp --silent /etc/slurm/slurm.conf /run/wrong.conf")
    result = host.run(f"{CHECK} /run/wrong.conf {address}")
    assert result.rc == 1
    assert error in result.stderr
    assert host.run("scontrol ping").rc == 0


@pytest.mark.parametrize(("edit", "status"), [("", 0), ("$ a NoSuchOption=1", 1)], ids=["good", "wrong"])
def test_check_leaves_nothing(host: Host, edit: str, status: int) -> None:
    address = host.backend.get_variables()["gridstead_address"]
    host.check_output(f"sed '{edit}' /etc/slurm/slurm.conf >/run/other.conf")
    # Once more with a place that it has, to see that it uses it: otherwise the look afterwards would show nothing.
    used = host.run(f"sh -x {CHECK} /run/other.conf {address}")
    assert used.rc == status, used.stderr
    assert "dir=/run/slurm-check." in used.stderr
    assert host.check_output("systemctl list-units --all --no-legend 'slurm-check*'") == ""
    assert host.run("ls -d /run/slurm-check.*").rc != 0


def test_end_of_a_job_is_announced(host: Host) -> None:
    """What the CE listens to: a directory named like the job appears where a listener of the job's owner waits."""
    host.check_output("install --directory --owner=slurm /run/slurm-job-ended/nobody/test")
    host.check_output(
        "runuser -u slurm -- env SLURM_JOB_USER=nobody SLURM_JOB_ID=7 /usr/local/libexec/gridstead/slurm-job-ended"
        " && rmdir /run/slurm-job-ended/nobody/test/7"
    )
    host.check_output("rm --recursive /run/slurm-job-ended/nobody")
    assert "EpilogSlurmctld[0]      = /usr/local/libexec/gridstead/slurm-job-ended" in host.check_output("scontrol show config")


def test_a_run_that_ends_between_slurm_conf_and_the_reconfiguration_is_made_good_by_the_next(host: Host) -> None:
    """slurm.conf is as it should be then, and slurmctld would never hear of it. It is told, and nobody is restarted."""
    changed: dict[str, Any] = {"slurm_controller_extra": {"MinJobAge": 130}}
    before = instances(host, *SERVICES)
    run_role(host, "slurm_controller", changed, cut_off=True)
    assert "MinJobAge=130" in host.check_output("cat /etc/slurm/slurm.conf")
    assert "MinJobAge               = 120 sec" in host.check_output("scontrol show config"), "it was cut off"
    run_role(host, "slurm_controller", changed)
    assert "MinJobAge               = 130 sec" in host.check_output("scontrol show config")
    assert not started_anew(before, instances(host, *SERVICES))
    assert "changed=0 " in run_role(host, "slurm_controller", changed)


def test_only_the_daemon_whose_settings_changed_is_restarted(host: Host) -> None:
    changed: dict[str, Any] = {"slurm_accounting_extra": {"PurgeJobAfter": "11months"}}
    before = instances(host, *SERVICES)
    run_role(host, "slurm_accounting", changed, cut_off=True)
    assert not started_anew(before, instances(host, *SERVICES))
    run_role(host, "slurm_accounting", changed)
    assert started_anew(before, instances(host, *SERVICES)) == {"slurmdbd"}
    assert "PurgeJobAfter          = 11 months" in host.check_output("sacctmgr show configuration")


def test_a_partition_with_a_qos_that_is_not_there_is_refused(host: Host) -> None:
    """Where QoS are enforced, the real slurmctld would not start again, and the one that checks the file has no accounting."""
    partitions = {"main": {"Nodes": "ALL", "Default": True, "QOS": "nosuch"}}
    before = host.file("/etc/slurm/slurm.conf").content
    says = "name QoS that Slurm's accounting does not have: nosuch. It has normal;"
    run_role(host, "slurm_controller", {"slurm_controller_partitions": partitions}, fails_with=says)
    assert host.file("/etc/slurm/slurm.conf").content == before
    partitions["main"]["QOS"] = "normal"
    run_role(host, "slurm_controller", {"slurm_controller_partitions": partitions})
    assert "QoS=normal" in host.check_output("scontrol show partition main")

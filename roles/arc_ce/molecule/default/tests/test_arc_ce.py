"""Two CEs on one host, one from packages and one unpacked by its user, and a third that its user starts himself. REST: test_arc_ce_rest.py."""

import time

import pytest
from testinfra.host import Host

from role_support import instances, play_variables, run_role, started_anew

testinfra_hosts = ["ansible://arc_ce"]

SUBMIT = "arcsub -C file://localhost -T internal -Q NONE --no-delegation"
OPTIONS = play_variables(__file__, "Converge")
UNITS = [("arc-ce", "grid", "/etc/arc.conf"), ("arc-ce-alice", "alice", "/etc/arc-alice.conf")]


def as_user(user: str, script: str) -> str:
    return f"runuser --login {user} --command '{script}'"


def journal(host: Host, unit: str) -> str:
    return str(host.run(f"journalctl --no-pager --lines=30 --unit={unit}; tail -n 30 /var/log/{unit}/arex.log").stdout)


def option(host: Host, config: str, name: str) -> str:
    return str(host.check_output(f"sed -n s/^{name}=//p {config}"))


def wait_for(host: Host, command: str, seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if host.run(command).rc == 0:
            return True
        time.sleep(0.3)
    return False


def hello(host: Host, user: str, config: str, control: str, before: str = "true") -> None:
    """A job through INTERNAL, to its result."""
    said = host.run(as_user(user, f"{before}; cd; ARC_CONFIG={config} {SUBMIT} /usr/local/share/gridstead/hello.xrsl"))
    assert said.rc == 0, said.stderr
    job = said.stdout.split()[-1].rsplit("/", 1)[1]
    assert wait_for(host, f"test -e {control}/finished/{job}.status"), f"{said.stdout}: not finished"
    session = option(host, config, "sessiondir")
    assert host.check_output(f"cat {session}/{job}/out.txt").startswith(f"Hello from compute001, user {user}")
    host.check_output(as_user(user, f"{before}; cd; ARC_CONFIG={config} arcclean --all --force"))


@pytest.mark.parametrize(("unit", "user", "config"), UNITS)
def test_service(host: Host, unit: str, user: str, config: str) -> None:
    service = host.service(unit)
    assert service.is_running, journal(host, unit)
    assert service.is_enabled
    pid = host.check_output(f"systemctl show --property=MainPID --value {unit}")
    assert host.check_output(f"ps -o user= -p {pid}") == user
    assert host.service(f"{unit}-wake.path").is_running
    assert host.file(option(host, config, "controldir")).user == user


def test_logs_are_rotated_and_written_on(host: Host) -> None:
    assert host.service("logrotate.timer").is_enabled
    host.check_output("logrotate --force /etc/logrotate.d/arc-ce")
    assert host.file("/var/log/arc-ce/arex.log.1").size > 0
    hello(host, "grid", "/etc/arc.conf", option(host, "/etc/arc.conf", "controldir"))
    written = host.file("/var/log/arc-ce/arex.log")
    assert written.size > 0
    assert b"\0" not in written.content, "it was cut while the A-REX wrote on where it had been"


def test_a_run_that_ends_between_the_configuration_and_the_restart_is_made_good_by_the_next(host: Host) -> None:
    changed = {**OPTIONS, "arc_ce_site": "another-name"}
    before = instances(host, "arc-ce", "arc-ce-alice", "munge")
    try:
        run_role(host, "arc_ce", changed, cut_off=True)
        assert "admindomain_name=another-name" in host.check_output("cat /etc/arc.conf")
        assert not started_anew(before, instances(host, *before)), "it was cut off"
        run_role(host, "arc_ce", changed)
        assert started_anew(before, instances(host, *before)) == {"arc-ce"}
        assert "changed=0 " in run_role(host, "arc_ce", changed)
    finally:
        run_role(host, "arc_ce", OPTIONS)


@pytest.mark.parametrize(("user", "config"), [words[1:] for words in UNITS])
def test_job(host: Host, user: str, config: str) -> None:
    hello(host, user, config, option(host, config, "controldir"))


@pytest.mark.parametrize(("unit", "config"), [words[::2] for words in UNITS])
def test_health(host: Host, unit: str, config: str) -> None:
    info = f"{option(host, config, 'controldir')}/info.xml"
    assert wait_for(host, f"test -s {info}"), journal(host, unit)
    assert host.check_output(f"grep -o '<HealthState>.*</HealthState>' {info} | sort -u") == "<HealthState>ok</HealthState>"


@pytest.mark.parametrize("unit", ["arc-arex", "arc-arex-ws", "arched"])
def test_units_of_the_packages_cannot_start(host: Host, unit: str) -> None:
    assert host.run(f"systemctl is-enabled {unit}").stdout.strip() == "masked"


def test_without_rest_no_certificate_and_no_port(host: Host) -> None:
    config = host.file("/etc/arc-alice.conf").content_string
    assert "\nx509_host_cert=\n" in config
    assert "x509_cert_policy=system" in config
    assert not [line for line in config.splitlines() if line.startswith(("[authgroup", "[arex/ws", "[authtokens", "map_"))]
    assert not host.file("/etc/systemd/system/arc-ce-alice-ws.service").exists
    assert not host.file("/etc/grid-security/arc-ce-alice").exists


def test_the_packages_made_no_authority(host: Host) -> None:
    found = host.run("grep -rlE 'PRIVATE KEY|BEGIN CERTIFICATE' /etc/grid-security /etc/arc.conf.d /root/.globus").stdout.split()
    assert [
        path for path in found if not path.startswith(("/etc/grid-security/arc-ce", "/etc/grid-security/certificates/gridstead-"))
    ] == []


def test_second_ce_is_the_users_own(host: Host) -> None:
    pid = host.check_output("systemctl show --property=MainPID --value arc-ce-alice")
    assert host.file(f"/proc/{pid}/exe").linked_to == "/grid/home/alice/arc/usr/sbin/arched"
    mapped = host.check_output(f"grep -o '/[^ ]*libarc[a-z]*[.]so[^ ]*' /proc/{pid}/maps | sort -u").splitlines()
    assert mapped
    assert all(path.startswith("/grid/home/alice/arc/") for path in mapped), mapped
    assert host.run("find /grid/home/alice/arc ! -user alice | grep .").rc == 1


def test_a_user_without_root(host: Host) -> None:
    """arc-user-install and arc-ce start need nothing that bob has not; a second start is none, and stop waits for the end."""
    tool = "runuser -u bob -- env -i HOME=/grid/home/bob PATH=/usr/bin:/bin"
    if not host.file("/grid/home/bob/arc/environment").exists:
        host.check_output(f"cd /grid/home/bob && {tool} /usr/local/libexec/gridstead/arc-user-install arc")
    again = host.run(f"cd /grid/home/bob && {tool} /usr/local/libexec/gridstead/arc-user-install arc")
    assert again.rc == 1
    assert "complete already" in again.stderr
    ce = f"cd / && {tool} /grid/home/bob/arc/bin/arc-ce"
    host.check_output(f"{ce} start")
    try:
        host.check_output(f"{ce} start")
        assert host.check_output("pgrep -u bob -x arched | wc -l") == "1"
        assert host.check_output(f"{ce} status") == "running"
        hello(host, "bob", "/grid/home/bob/arc/arc.conf", "/grid/home/bob/arc/control", 'eval "$(arc/bin/arc-ce environment)"')
    finally:
        host.check_output(f"{ce} stop")
    assert host.run("pgrep -u bob -x arched").rc == 1
    assert host.run(f"{ce} status").rc == 3


def test_root_is_refused(host: Host) -> None:
    said = host.run("/usr/local/libexec/gridstead/arc-user-install /root/arc")
    assert (said.rc, host.file("/root/arc").exists) == (1, False)
    assert "call this as the user" in said.stderr


def test_site_options(host: Host) -> None:
    config = host.file("/etc/arc.conf").content_string.splitlines()
    assert "defaultttl=259200" in config
    assert config[config.index("[queue:main]") + 1 :][:2] == ["comment=first line", "comment=second line"]
    assert not [line for line in config if line.startswith("mail=")]


def test_jobs_that_are_not_the_ces_wake_it_only_once(host: Host) -> None:
    """A job that grid submits past the CE, and what does not belong into the directory, are forgotten."""
    directory = "/run/slurm-job-ended/grid/arc-ce"
    job = host.check_output(as_user("grid", "sbatch --parsable --wait --output=/dev/null --wrap=true"))
    host.check_output(
        f"touch {directory}/{job}.file; install --directory --owner=grid {directory}/{job}.directory; runuser -u grid touch {directory}/{job}.directory/file"
    )
    assert wait_for(host, f'test -z "$(ls {directory})"'), host.check_output(f"ls -lR {directory}") + journal(host, "arc-ce-wake")
    assert wait_for(host, "test $(systemctl is-active arc-ce-wake.service) = inactive"), journal(host, "arc-ce-wake")


def test_end_of_a_job_is_announced_by_slurm(host: Host) -> None:
    """How much quicker that is, the end-to-end tests measure."""
    before = host.check_output("date +%s")
    hello(host, "grid", "/etc/arc.conf", "/var/spool/arc/jobstatus")
    woken = f"journalctl --quiet --no-pager --unit=arc-ce-wake.service --since=@{before} | grep -q Finished"
    assert wait_for(host, woken, seconds=20), journal(host, "arc-ce-wake") + journal(host, "slurmctld")


def test_wrong_configuration_fails_at_start(host: Host) -> None:
    """The A-REX reads its configuration only after it has gone to the background; the unit's start fails all the same."""
    host.check_output(
        "cp --preserve /etc/arc-alice.conf /etc/arc-alice.good && sed -i 's/^cachesize=.*/cachesize=10 90/' /etc/arc-alice.conf"
    )
    try:
        started = host.run("systemctl restart arc-ce-alice")
        assert started.rc != 0
        assert "The A-REX did not start, see /var/log/arc-ce-alice/arex.log" in journal(host, "arc-ce-alice")
        assert "max cache size must be greater than min size" in host.file("/var/log/arc-ce-alice/arex.log").content_string
    finally:
        host.check_output(
            "mv /etc/arc-alice.good /etc/arc-alice.conf && systemctl reset-failed arc-ce-alice && systemctl restart arc-ce-alice"
        )
    assert host.service("arc-ce-alice").is_running

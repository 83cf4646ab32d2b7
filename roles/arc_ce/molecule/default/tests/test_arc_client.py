"""The commands know the site's CE; what they are told otherwise they do."""

import re
import time

import pytest
from testinfra.host import Host

testinfra_hosts = ["ansible://arc_client"]

NOISE = "ERROR: INTERNALClient is not initialized"


def as_grid(script: str) -> str:
    return f"runuser --login grid --command '{script}'"


def test_bare_arcsub_runs_a_job(host: Host) -> None:
    host.check_output(as_grid('printf "pear\\napple\\n" > words.txt'))
    said = host.run(as_grid("arcsub --joblist=test.dat /usr/local/share/gridstead/files.xrsl"))
    assert said.rc == 0, said.stderr
    assert set(said.stderr.splitlines()) <= {NOISE}
    job = said.stdout.split()[-1]
    for _ in range(200):
        if "State: Finished" in host.run(as_grid(f"arcstat --joblist=test.dat {job}")).stdout:
            break
        time.sleep(0.3)
    got = host.check_output(as_grid("arcget --joblist=test.dat --all --dir results"))
    name = job.rsplit("/", 1)[1]
    assert "successfully retrieved: 1" in got
    assert host.file(f"/grid/home/grid/results/{name}/sorted.txt").content_string == "apple\npear\n"
    assert host.file(f"/grid/home/grid/results/{name}/out.txt").content_string == "2 sorted.txt\n"
    host.check_output(as_grid("rm -r results test.dat words.txt"))


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("job.xrsl", "-C file://localhost -T internal -Q NONE --no-delegation job.xrsl"),
        ("-d DEBUG -o ids job.xrsl", "-C file://localhost -T internal -Q NONE --no-delegation -d DEBUG -o ids job.xrsl"),
        ("-C other.example job.xrsl", "-C other.example job.xrsl"),
        ("--computing-element=other.example job.xrsl", "--computing-element=other.example job.xrsl"),
        ("job.xrsl -T arcrest", "job.xrsl -T arcrest"),
        ("-P", "-P"),
    ],
)
def test_a_target_that_is_named_is_taken(host: Host, arguments: str, wanted: str) -> None:
    """The program in front of ARC's own, with echo in its place."""
    assert host.check_output(f"sed s,/usr/bin/arcsub,echo, /usr/local/bin/arcsub | sh -s -- {arguments}") == wanted


def test_awkward_arguments_stay_whole(host: Host) -> None:
    said = host.check_output("sed 's,/usr/bin/arcsub,printf %s\\\\\\\\n,' /usr/local/bin/arcsub | sh -s -- 'a  b' '*'")
    assert said.splitlines()[-2:] == ["a  b", "*"]


def test_client_configuration(host: Host) -> None:
    config = host.file("/etc/arc/client.conf")
    assert config.contains("^timeout=20$")
    assert config.contains("^causesystem=0$"), "the site has an authority of its own"
    assert host.run(as_grid("arcstat --all --debug INFO")).stderr.count("Configuration (/etc/arc/client.conf) loaded") == 1


@pytest.mark.parametrize("command", ["arcsub", "arcstat", "arcget", "arckill", "arcclean", "arccat"])
def test_commands(host: Host, command: str) -> None:
    assert re.search(r"\bversion 7\.\d+\.\d+$", host.check_output(f"{command} --version").strip())


def test_bindings_are_not_installed(host: Host) -> None:
    """They would make each of ARC's own calls three times as long (README of arc_ce)."""
    assert not host.package("python3-nordugrid-arc").is_installed


@pytest.mark.parametrize("probe", ["check_arcce_submit", "check_arcrest_info", "check_gridstorage", "check_arcservice"])
def test_probes(host: Host, probe: str) -> None:
    assert host.run(f"test -x /usr/lib/nagios/plugins/{probe}").rc == 0

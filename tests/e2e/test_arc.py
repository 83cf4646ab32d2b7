"""The CE: jobs from ARC's own client through the A-REX and Slurm to a compute node and back."""

from __future__ import annotations

import re
import shlex
import textwrap
from typing import TYPE_CHECKING

import pytest

from support import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support import Node, Site

USER = "grid"
UNIT = "arc-ce"
INTERNAL = "-C file://localhost -T org.nordugrid.internal -Q NONE --no-delegation"
CONTROL = "/var/spool/arc/jobstatus"
PROBES = "/usr/lib/nagios/plugins"


def xrsl(script: str, *more: str, name: str = "e2e") -> str:
    """A job description: a shell script, its output in out.txt and err.txt, and the A-REX's own notes in gmlog."""
    quoted = script.replace('"', '""')
    attributes = ['executable="/bin/sh"', f'arguments="-c" "{quoted}"', f'jobname="{name}"', 'stdout="out.txt"', 'stderr="err.txt"']
    return "&" + "".join(f"({attribute})" for attribute in (*attributes, 'gmlog="gmlog"', *more))


def submit(ce: Node, directory: str, description: str, *, options: str = INTERNAL, copies: int = 1) -> list[str]:
    """Submit a job, or many at once; returns the jobs' ids, which are URLs."""
    ce.sh(f"cd {directory} && cat > job.xrsl <<'END'\n{description}\nEND", user=USER)
    said = ce.sh(f"cd {directory} && arcsub {options} --joblist=jobs.dat {'job.xrsl ' * copies}", user=USER)
    jobs = re.findall(r"jobid: (\S+)", said.stdout)
    assert len(jobs) == copies, f"{said}\n{ce.journal(UNIT)}"
    return jobs


def identifier(job: str) -> str:
    return job.rsplit("/", 1)[1]


def state(ce: Node, directory: str, job: str) -> str:
    """What arcstat says."""
    said = ce.sh(f"cd {directory} && arcstat --joblist=jobs.dat {job}", user=USER, check=False).stdout
    found = re.search(r"^ State: (.+)", said, re.MULTILINE)
    return found[1] if found else ""


def notes(ce: Node, job: str) -> str:
    """What the A-REX noted about a job, for a failing test's message."""
    i = identifier(job)
    return ce.sh(
        f"cat {CONTROL}/jobs/{i[:3]}/{i[3:6]}/{i[6:9]}/{i[9:]}/errors | tail -n 40; tail -n 20 /var/log/arc-ce/arex.log", check=False
    ).stdout


def finished(ce: Node, directory: str, job: str, *, seconds: float = 90) -> None:
    """Wait until arcstat calls the job finished."""
    try:
        until(f"{job} to finish", lambda: state(ce, directory, job) == "Finished", seconds=seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{notes(ce, job)}") from None


def slurm_id(ce: Node, job: str) -> str:
    """Slurm's id of a job that the A-REX has submitted."""
    i = identifier(job)
    local = f"{CONTROL}/jobs/{i[:3]}/{i[3:6]}/{i[6:9]}/{i[9:]}/local"

    def found() -> str:
        return ce.sh(f"sed -n 's/^localid=//p' {local}", check=False).stdout.strip()

    return str(until(f"{job} to be in Slurm", found))


def slurm_state(controller: Node, number: str) -> str:
    return controller.out(f"squeue --noheader --states=all --format=%T --jobs={number}")


def fetched(ce: Node, directory: str, job: str) -> str:
    """The directory that arcget made for a job. The job is gone from the CE then."""
    said = ce.sh(f"cd {directory} && arcget --joblist=jobs.dat {job}", user=USER)
    assert "successfully retrieved: 1" in said.stdout, str(said)
    return f"{directory}/{identifier(job)}"


@pytest.fixture
def job_directory(scratch: str, ce: Node) -> Iterator[str]:
    """Where a test keeps its job descriptions and list of jobs; what it leaves on the CE is removed."""
    yield scratch
    ce.sh(
        f"cd {scratch} && [ ! -e jobs.dat ] || {{ arckill --joblist=jobs.dat --all; arcclean --joblist=jobs.dat --all --force; }}",
        user=USER,
        check=False,
    )


@pytest.fixture
def ready(ce: Node) -> Callable[[], None]:
    """Waits for an A-REX that accepts jobs."""

    def wait() -> None:
        until("the CE to be active", lambda: ce.sh(f"systemctl is-active {UNIT}", check=False).stdout.strip() == "active", seconds=60)

    return wait


def test_a_job_with_files(ce: Node, computes: list[Node], job_directory: str) -> None:
    """Input files, arguments with awkward characters, output file and standard output come back byte for byte; the payload ran under Slurm."""
    script = """#!/bin/sh
cat input.bin input.bin > output.bin
hostname -s; id -un; echo $SLURM_JOB_ID; printf '%s|' "$@"
echo oops >&2"""
    ce.sh(f"cd {job_directory}; head -c 3000000 /dev/urandom > input.bin; cat > run.sh <<'END'\n{script}\nEND", user=USER)
    description = """& (executable="run.sh") (arguments="a b" "c'd" "e;*|f" "") (jobname="files") (stdout="out.txt") (stderr="err.txt")
        (inputfiles=("run.sh" "") ("input.bin" "")) (outputfiles=("output.bin" ""))"""
    (job,) = submit(ce, job_directory, description)
    number = slurm_id(ce, job)
    finished(ce, job_directory, job)
    results = fetched(ce, job_directory, job)
    node, user, inside, words = ce.out(f"cat {results}/out.txt", user=USER).splitlines()
    assert node in {compute.name for compute in computes}
    assert (user, inside) == (USER, number)
    assert words == "a b|c'd|e;*|f||"
    assert ce.out(f"cat {results}/err.txt", user=USER) == "oops"
    ce.sh(f"cd {job_directory} && cat input.bin input.bin | cmp - {results}/output.bin", user=USER)
    assert "input.bin" not in ce.out(f"ls {results}", user=USER)


def test_bare_arcsub(ce: Node, computes: list[Node], job_directory: str) -> None:
    """Without any option arcsub takes this site's CE. What ARC always says with INTERNAL (README of arc_client) is all it says."""
    said = ce.sh(f"cd {job_directory} && arcsub --joblist=jobs.dat /usr/local/share/gridstead/hello.xrsl", user=USER)
    assert set(said.stderr.splitlines()) <= {"ERROR: INTERNALClient is not initialized"}
    job = said.stdout.split()[-1]
    finished(ce, job_directory, job)
    said_inside = ce.out(f"cat {fetched(ce, job_directory, job)}/out.txt", user=USER)
    assert said_inside.startswith(tuple(f"Hello from {compute.name}" for compute in computes)), said_inside


def test_input_through_the_cache(ce: Node, root: str, job_directory: str) -> None:
    """The A-REX fetches a file from a server for a first job and takes it out of its cache for a second."""
    server = textwrap.dedent(
        """
        import http.server, urllib.parse
        class Handler(http.server.SimpleHTTPRequestHandler):
            def translate_path(self, path):  # ARC asks for the whole URL, as of a proxy
                return super().translate_path(urllib.parse.urlsplit(path).path)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        print(server.server_port, flush=True)
        server.serve_forever()
        """
    )
    ce.sh(f"cd {job_directory} && cat > server.py <<'END'\n{server}\nEND\nhead -c 100000 /dev/urandom > data.bin", user=USER)
    ce.sh(f"cd {job_directory} && (timeout {150 * PATIENCE:.0f} python3 server.py > port 2> requests & echo $! > pid)", user=USER)
    try:
        port = until("the server's port", lambda: ce.out(f"cat {job_directory}/port"))
        description = xrsl("sha256sum < data.bin", f'inputfiles=("data.bin" "http://localhost:{port}/data.bin")')
        for _ in range(2):
            (job,) = submit(ce, job_directory, description)
            finished(ce, job_directory, job)
            sums = ce.out(f"sha256sum < {job_directory}/data.bin; cat {fetched(ce, job_directory, job)}/out.txt", user=USER).split("\n")
            assert sums[0] == sums[1]
        cached = ce.out(f"cd {root}/cache/data && grep -rlF localhost:{port}/data.bin . | sed -n 's/[.]meta$//p'").splitlines()
        assert len(cached) == 1
        ce.sh(f"cd {root}/cache/data && cmp {cached[0]} {job_directory}/data.bin; rm -f {cached[0]} {cached[0]}.meta")
    finally:
        ce.sh(f"pkill -P $(cat {job_directory}/pid); kill $(cat {job_directory}/pid)", check=False)


def test_arckill_ends_the_slurm_job(ce: Node, controller: Node, job_directory: str) -> None:
    (job,) = submit(ce, job_directory, xrsl("sleep 300"))
    number = slurm_id(ce, job)
    until("the job to run", lambda: slurm_state(controller, number) == "RUNNING")
    said = ce.sh(f"cd {job_directory} && arckill --keep --joblist=jobs.dat {job}", user=USER)
    assert "successfully killed: 1" in said.stdout, str(said)
    until("Slurm to cancel the job", lambda: slurm_state(controller, number) == "CANCELLED", seconds=30)
    # ARC calls a killed job of INTERNAL finished, like all others.
    finished(ce, job_directory, job)
    assert "cancel" in ce.out(f"cat {fetched(ce, job_directory, job)}/gmlog/failed", user=USER).lower()


def test_failing_payload_keeps_its_exit_code(ce: Node, controller: Node, job_directory: str) -> None:
    """INTERNAL has one state for all jobs that have ended; what went wrong is in gmlog, which comes back with the results."""
    (job,) = submit(ce, job_directory, xrsl("echo so far; exit 7"))
    number = slurm_id(ce, job)
    finished(ce, job_directory, job)
    assert slurm_state(controller, number) == "FAILED"
    results = fetched(ce, job_directory, job)
    assert ce.out(f"cat {results}/gmlog/failed", user=USER) == "LRMS error: (7) Job failed"
    assert "exitcode=7" in ce.out(f"cat {results}/gmlog/diag", user=USER).splitlines()
    assert ce.out(f"cat {results}/out.txt", user=USER) == "so far"


def test_successful_payload_is_not_failed(ce: Node, job_directory: str) -> None:
    """The reverse of the test above: otherwise it would show nothing."""
    (job,) = submit(ce, job_directory, xrsl("exit 0"))
    finished(ce, job_directory, job)
    results = fetched(ce, job_directory, job)
    assert ce.sh(f"test -e {results}/gmlog/failed", check=False).rc == 1
    assert "exitcode=0" in ce.out(f"cat {results}/gmlog/diag", user=USER).splitlines()


def test_fifty_jobs_at_once(ce: Node, controller: Node, job_directory: str) -> None:
    """None is lost, none runs twice."""
    jobs = submit(ce, job_directory, xrsl("echo $GRID_GLOBAL_JOBID $SLURM_JOB_ID"), copies=50)
    ended = " ".join(f"{CONTROL}/finished/{identifier(job)}.status" for job in jobs)

    def number() -> int:
        return int(ce.sh(f"ls {ended} 2>/dev/null | wc -l").stdout)

    until("50 jobs to finish", lambda: number() == 50, seconds=400, pause=1)
    said = ce.sh(f"cd {job_directory} && arcget --joblist=jobs.dat --all", user=USER)
    assert "successfully retrieved: 50" in said.stdout, str(said)
    assert ce.sh(f"cat {job_directory}/*/gmlog/failed", check=False).rc == 1
    lines = ce.out(f"cat {job_directory}/*/out.txt", user=USER).splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted(identifier(job) for job in jobs)
    assert len({line.split()[1] for line in lines}) == 50
    # Of slurmdbd: slurmctld forgets a job five minutes after its end, and emulated machines take longer than that for fifty.
    names = controller.out("sacct --noheader --allocations --user=grid --starttime=now-6hours --format=JobID%20").split()
    assert {line.split()[1] for line in lines} <= set(names)


def test_end_of_a_job_needs_no_polling(ce: Node, controller: Node, job_directory: str) -> None:
    """The A-REX looks itself every ten seconds; slurmctld's word is quicker. Several jobs: one could be lucky."""
    ended, noted = "{print $2}", r"s/.*T\(..:..:..\)Z .*INLRMS -> FINISHING.*/\1/p"
    delays = []
    for _ in range(3):
        (job,) = submit(ce, job_directory, xrsl("true"))
        number = slurm_id(ce, job)
        finished(ce, job_directory, job)
        over = controller.out(f"date -d $(scontrol --oneliner show job {number} | grep -o ' EndTime=[^ ]*' | awk -F= '{ended}') +%s")
        i = identifier(job)
        errors = f"{CONTROL}/jobs/{i[:3]}/{i[3:6]}/{i[6:9]}/{i[9:]}/errors"
        seen = ce.out(f"date -u -d $(sed -n '{noted}' {errors}) +%s")
        delays.append(int(seen) - int(over))
        woken = f"journalctl --no-pager --quiet -u {UNIT}-wake.service --since=@{over} --until=@{int(seen) + 1} | grep -c Starting"
        assert ce.sh(woken, check=False).stdout.strip() != "0", f"{job} ended at {over}, was noted at {seen}, and nothing woke the A-REX"
    # Two stamps of whole seconds, and a scan takes half a second on an idle machine.
    assert sorted(delays)[1] <= 5 * PATIENCE, (
        f"seconds from the end in Slurm to the A-REX's note of it: {delays}\n{ce.journal(UNIT + '-wake')}"
    )


def test_jobs_survive_a_killed_arex(ce: Node, controller: Node, job_directory: str, ready: Callable[[], None]) -> None:
    """kill -9 while one job runs and another ends in between: systemd starts the A-REX again, and neither is lost."""
    (long,) = submit(ce, job_directory, xrsl("sleep 12; echo survived"))
    (short,) = submit(ce, job_directory, xrsl("sleep 2; echo survived"))
    numbers = [slurm_id(ce, job) for job in (long, short)]
    until("both jobs to run", lambda: all(slurm_state(controller, number) != "PENDING" for number in numbers))
    killed = ce.out(f"systemctl show --property=MainPID --value {UNIT}")
    ce.sh(f"kill -9 {killed}")
    until("systemd to notice", lambda: ce.out(f"systemctl show --property=MainPID --value {UNIT}") not in {killed, "0"})
    ready()
    for job in (long, short):
        finished(ce, job_directory, job)
        results = fetched(ce, job_directory, job)
        assert ce.out(f"cat {results}/out.txt", user=USER) == "survived"
        assert ce.sh(f"test -e {results}/gmlog/failed", check=False).rc == 1


def test_restart(ce: Node, job_directory: str) -> None:
    """A restart waits for the old A-REX: afterwards one runs, and a job that ran meanwhile is finished by it."""
    (job,) = submit(ce, job_directory, xrsl("sleep 5; echo done"))
    slurm_id(ce, job)
    ce.sh(f"systemctl restart {UNIT}")
    assert len(ce.out(f"pgrep -u {USER} -x arched").split()) == 1, ce.journal(UNIT)
    assert ce.out(f"systemctl is-active {UNIT}") == "active"
    finished(ce, job_directory, job)
    assert ce.out(f"cat {fetched(ce, job_directory, job)}/out.txt", user=USER) == "done"


def test_runs_unprivileged_without_certificate(ce: Node, root: str) -> None:
    owners = set(ce.out("ps -C arched -o user=").split())
    assert owners, ce.journal(UNIT)
    assert "root" not in owners
    assert USER in owners
    listening = ce.out("ss -Hltnp")
    assert "arched" not in listening
    keys = ce.sh(
        f"grep -rlE 'PRIVATE KEY|BEGIN CERTIFICATE' /etc/grid-security /etc/arc.conf.d /root/.globus {root}/home/*/.globus", check=False
    )
    assert keys.stdout == ""
    for unit in ("arc-arex", "arc-arex-ws", "arched"):
        assert ce.sh(f"systemctl is-enabled {unit}", check=False).stdout.strip() == "masked"


def test_published_health(ce: Node, site: Site) -> None:
    """The information system calls the CE healthy though there is no certificate, and knows the site's name and queue."""
    document = until("info.xml", lambda: ce.sh(f"cat {CONTROL}/info.xml", check=False).stdout, seconds=90)
    health = re.findall(r"<HealthState>(.*?)</HealthState>", document)
    assert health, document[:2000]
    assert set(health) == {"ok"}, re.findall(r"<HealthStateInfo>.*?</HealthStateInfo>", document)
    assert f"<ID>urn:ad:{site.name}</ID>" in document
    assert re.search(r"<MappingQueue>main</MappingQueue>", document)
    assert re.findall(r"<ServingState>(.*?)</ServingState>", document)[0] == "production"


def test_heartbeat(ce: Node) -> None:
    """What monitoring looks at."""
    age = int(ce.out(f"echo $(($(date +%s) - $(stat -c %Y {CONTROL}/gm-heartbeat)))"))
    assert age < 60 * PATIENCE, ce.journal(UNIT)


def test_nagios_probes(ce: Node, job_directory: str) -> None:
    """Submit, monitor and clean, as a site's Nagios calls them: the probe's own job with an input file.

    The package's other probes are installed and can't apply. check_arcrest_info and check_arcservice ask a REST interface or an LDAP
    server, and the CE has only INTERNAL: no port is open and no host certificate is there. check_gridstorage tests a storage element.
    """
    options = f"--arcnagios-spooldir {job_directory}/nagios --how-invoked manual"
    ce.sh(f"mkdir {job_directory}/nagios", user=USER)
    submitted = ce.sh(f"{PROBES}/check_arcce_submit -H {shlex.quote(ce.fqdn)} --ce file://localhost {options}", user=USER)
    assert submitted.stdout.startswith("Job submitted."), str(submitted)

    def monitored() -> bool:
        said = ce.sh(f"{PROBES}/check_arcce_monitor {options}", user=USER)
        return "1 cleaned" in said.stdout or "1 successfully fetched" in said.stdout

    until("the probe's job to be fetched", monitored, seconds=90, pause=1)
    cleaned = ce.sh(f"{PROBES}/check_arcce_clean {options}", user=USER)
    assert cleaned.rc == 0, str(cleaned)
    results = ce.out(f"cat {job_directory}/nagios/ce-state/*/job_output.LAST/*/stdout.txt", user=USER)
    assert results, "the probe's job wrote nothing"

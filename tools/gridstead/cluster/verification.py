"""Checking a site by using it: a real job where it runs jobs, a shared file where it shares files."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass

from gridstead.cluster.errors import GridsteadError
from gridstead.cluster.inventory import root_argv
from gridstead.cluster.paths import ROOT
from gridstead.cluster.site import Site

#: Seconds after which the first job is given up.
JOB_LIMIT = 180
#: Seconds in which a file written on the server must be there on a client.
FILE_LIMIT = 30
#: Seconds for which a check that went well stands, when nothing was done to the site since.
STANDS = 3600


@dataclass(frozen=True)
class FirstJob:
    """A job that went all the way.

    Args:
        id: its id in the batch system or the CE.
        through: what it was submitted with.
        node: the compute node it ran on.
        seconds: from submission to result.
    """

    id: str
    through: str
    node: str
    seconds: float

    def __str__(self) -> str:
        return f"first job: through {self.through} to {self.node} and back in {self.seconds:.1f} s"


@dataclass(frozen=True)
class FirstFile:
    """A file that was written on one node and read on another.

    Args:
        share: the shared directory.
        server: where it was written.
        node: where it was read.
        seconds: from before the writing to after the reading.
    """

    share: str
    server: str
    node: str
    seconds: float

    def __str__(self) -> str:
        return f"first file: in {self.share} from {self.server} to {self.node} in {self.seconds:.1f} s"


class VerificationError(GridsteadError):
    """The site does not do what it offers."""


#: What ARC and Slurm know of a job that went wrong, each with where it stands; no more than is said. ARC's own commands tell of INTERNAL no more than that
#: it has ended: the rest is in the A-REX's notes on the job, which its user may read (role arc_ce), and in Slurm.
_WHY = """
control=$(sed -n 's/^controldir *= *//p' "${ARC_CONFIG:-/etc/arc.conf}" | head -n 1)
notes_on() { echo "${1##*/}" | sed -E "s,^(...)(...)(...)(.*),$control/jobs/\\1/\\2/\\3/\\4,"; }
slurm_job() { [ ! -e "$notes/local" ] || job=$(sed -n 's/^localid=//p' "$notes/local"); }
why() {
    set +e
    arcstat -l -j jobs.db "$id" 2>/dev/null | sed -n 's/^ *\\(State\\|Exit code\\|Job error\\): */arcstat: \\1: /p'
    sed "s,^,A-REX ($notes/failed): ," "$notes/failed" 2>/dev/null
    # Without the job script, which stands there as well.
    awk '/script follows/ { skip = 2 } skip && /^-+$/ { skip--; next } skip || /Job state change/ { next }
        tolower($0) ~ /error|fail|fatal|denied|cannot|could ?n.t|unable|no such|invalid/' "$notes/errors" 2>/dev/null |
        tail -n 6 | sed "s,^,A-REX ($notes/errors): ,"
    slurm_job
    if [ -n "$job" ]; then
        said=$(scontrol --oneliner show job "$job" 2>&1)
        echo "Slurm (scontrol show job $job):$(echo "$said" | grep -oE '^slurm.*| (JobState|Reason|ExitCode|NodeList)=[^ ]+' | tr -d '\\n')"
        errors=$(echo "$said" | sed -n 's/.* StdErr=\\([^ ]*\\).*/\\1/p')
        [ -z "$errors" ] || [ -s "$errors" ] ||
            echo "$errors, where the job's node writes what goes wrong, says nothing on $(hostname): does that node see the same file system?"
    else
        echo "Slurm: ARC has not brought it there (no localid in $notes/local)"
    fi
    for file in got/*/err got/*/out; do
        [ ! -s "$file" ] || sed "s,^,the job's own ${file##*/}: ," "$file" | tail -n 4
    done
}
"""
#: Runs on the CE's node as the grid user: through ARC's own client, with INTERNAL, into Slurm and back.
#: arcget's exit code and the fetched bytes are the proof; the words the job prints are new in each run.
_ARC = f"""
set -eu
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
{_WHY}
cat >hello.xrsl <<'END'
&(executable="/bin/sh")(arguments="-c" "echo TOKEN; hostname")(stdout="out")(stderr="err")(jobname="first job")
END
id=$(arcsub -C file://localhost -T org.nordugrid.internal -Q NONE -j jobs.db hello.xrsl 2>log | sed -n 's/.*jobid: *//p')
[ -n "$id" ] || {{ echo "arcsub:"; cat log; exit 1; }}
notes=$(notes_on "$id") job=
end=$(($(date +%s) + LIMIT))
while :; do
    state=$(arcstat -j jobs.db "$id" 2>&1 | sed -n 's/^ *State: *//p')
    case $state in Finished*) break ;; Failed*|Killed*|Deleted*) why; exit 1 ;; esac
    [ "$(date +%s)" -lt "$end" ] || {{ echo "it was still $state after LIMIT s"; why; exit 1; }}
    sleep 0.2
done
[ ! -e "$notes/failed" ] || {{ why; exit 1; }}
slurm_job
# With this the A-REX forgets the job.
arcget -j jobs.db -D got "$id" >arcget.log 2>&1 || {{ echo "arcget: $(tail -n 2 arcget.log)"; why; exit 1; }}
grep -qsx TOKEN got/*/out || {{ echo "it ended well, and its output is not what it printed"; why; exit 1; }}
echo "id $id"; cat got/*/out
"""
#: With Slurm's own commands. srun waits for ever, and says no reason: that is asked for when it is given up.
_SLURM = """
set -eu
name=first-job-$$
{
    sleep LIMIT >/dev/null 2>&1
    echo "it had no result after LIMIT s; Slurm (squeue): $(squeue --noheader --name="$name" --format='job %i is %T, reason %r')"
    scancel --name="$name"
} &
echo "id srun"; srun --job-name="$name" --ntasks=1 sh -c 'echo TOKEN; hostname' || status=$?
kill $! 2>/dev/null || true
exit "${status:-0}"
"""


#: Writes a word into a new file of a share, and says its name.
_WRITE = """
set -eu; file=$(mktemp -p "$1" .gridstead-check.XXXXXX); echo "$2" >"$file"; chmod 0644 "$file"; echo "$file"
"""
_READ = """
end=$(($(date +%s) + LIMIT))
until cat "$1" 2>/dev/null; do [ "$(date +%s)" -lt "$end" ] || exec cat "$1"; sleep 0.2; done
"""


def first_check(site: Site) -> FirstJob | FirstFile | None:
    """Use the site as its users would, in the way that shows most of it.

    Returns:
        A job, where there are nodes to run it; else a shared file, where files are shared; else None: there is nothing to use but
        the nodes themselves, and those answered.

    Raises:
        VerificationError: it did not work.
    """
    ce, login, controller = (site.first_node_with(service) for service in ("arc_ce", "slurm_client", "slurm_controller"))
    proof: FirstJob | FirstFile | None = None
    if controller and site.first_node_with("slurm_node"):
        proof = _first_job(site, ce or login or controller, "ARC" if ce else "Slurm")
    elif exchange := _exchange(site):
        proof = _first_file(site, *exchange)
    # On a full disk there is just no mark, and the next `up` checks again.
    with contextlib.suppress(OSError):
        site.paths.checked.touch()
    return proof


def stands(site: Site) -> bool:
    """Whether a check went well not long ago, and nothing was done to the site since."""
    try:
        return 0 <= time.time() - site.paths.checked.stat().st_mtime < STANDS
    except OSError:
        return False


def _exchange(site: Site) -> tuple[str, str, str] | None:
    """A share, a node that writes into it, its server where it has one in the site, and another node that sees it; None when there is nothing such."""
    for share, origin in site.spec.origins.items():
        seeing = [node for node in site.spec.node_names() if share in site.spec.shares_seen(node)]
        seeing.sort(key=lambda node: node != origin)
        if len(seeing) > 1:
            return share, seeing[0], seeing[1]
    return None


def _first_file(site: Site, share: str, server: str, client: str) -> FirstFile:
    """Write a file into a share on one node, and read it on another."""
    token, began = uuid.uuid4().hex, time.monotonic()
    nodes = site.nodes()

    def on(node: str, script: str, *words: str) -> str:
        argv = root_argv(site.paths, nodes[node], "sh", "-c", script, "sh", *words)
        try:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=FILE_LIMIT * 2, check=False)
        except subprocess.TimeoutExpired:
            raise VerificationError(f"{node}: {share} does not answer: the first file took more than {FILE_LIMIT * 2} s") from None
        if done.returncode:
            raise VerificationError(
                f"{node}: the first file in {share} failed: {(done.stdout + done.stderr).strip()[-1500:]}",
                hint=f"`findmnt {share}` on {server} and on {client} shows what is mounted there",
            )
        return done.stdout.strip()

    with site.progress.step("first file", f"in {share} from {server} to {client}", silent=True):
        file = on(server, _WRITE, share, token)
        try:
            seen = on(client, _READ.replace("LIMIT", str(FILE_LIMIT)), file)
        finally:
            on(server, 'rm -f "$1"', file)
    if seen != token:
        raise VerificationError(f"{client}: {file} says {seen!r}, but {token!r} was written on {server}")
    return FirstFile(share, server, client, time.monotonic() - began)


def _first_job(site: Site, frontend: str, through: str) -> FirstJob:
    """Submit a job and wait for its result: through ARC as user grid, or with srun."""
    ce, script = through == "ARC", _ARC if through == "ARC" else _SLURM
    token = uuid.uuid4().hex
    script = script.replace("TOKEN", token).replace("LIMIT", str(JOB_LIMIT))
    user = ["runuser", "-l", "grid", "-c", "sh"] if ce else ["sh"]
    access = site.access(frontend)
    began = time.monotonic()
    with site.progress.step("first job", f"through {through} on {frontend}", silent=True):
        try:
            done = subprocess.run(
                root_argv(site.paths, access, *user),
                input=script,
                capture_output=True,
                text=True,
                timeout=JOB_LIMIT + 30,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise VerificationError(f"{frontend}: the first job did not end in {JOB_LIMIT + 30} s") from None
    lines = done.stdout.split()
    if done.returncode or token not in lines:
        raise VerificationError(
            f"{frontend}: the first job through {through} failed: {(done.stdout + done.stderr).strip()[-1500:]}",
            hint=f"`tools/cluster logs {frontend}` and `tools/cluster status` show more",
        )
    return FirstJob(lines[1], through, lines[-1], time.monotonic() - began)


def end_to_end(site: Site, *, select: str | None = None, quiet: bool = False) -> int:
    """Run tests/e2e with pytest on the site; returns pytest's exit code as 0 or 1."""
    argv = [sys.executable, "-m", "pytest", str(ROOT / "tests" / "e2e"), "-p", "no:cacheprovider", "-q" if quiet else "-v"]
    if select:
        argv += ["-k", select]
    done = subprocess.run(argv, env={**os.environ, "GRIDSTEAD_SITE": str(site.paths.spec)}, cwd=ROOT, check=False)
    return 1 if done.returncode else 0

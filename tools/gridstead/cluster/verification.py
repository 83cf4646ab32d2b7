"""Checking a site by real jobs."""

from __future__ import annotations

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


class VerificationError(GridsteadError):
    """The job did not come back as it should."""


#: Runs on the frontend as the grid user: through ARC's own client, with INTERNAL, into Slurm and back.
#: arcget's exit code and the fetched bytes are the proof; the words the job prints are new in each run.
_ARC = """
set -eu
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
cat >hello.xrsl <<'END'
&(executable="/bin/sh")(arguments="-c" "echo TOKEN; hostname")(stdout="out")(stderr="err")(jobname="first job")
END
id=$(arcsub -C file://localhost -T org.nordugrid.internal -Q NONE -j jobs.db hello.xrsl 2>log | sed -n 's/.*jobid: *//p')
[ -n "$id" ] || { cat log; exit 1; }
end=$(($(date +%s) + LIMIT))
while :; do
    state=$(arcstat -j jobs.db "$id" 2>&1 | sed -n 's/^ *State: *//p')
    case $state in Finished*) break ;; Failed*|Killed*|Deleted*) arcstat -l -j jobs.db "$id"; exit 1 ;; esac
    [ "$(date +%s)" -lt "$end" ] || { echo "still $state after LIMIT s"; arcstat -l -j jobs.db "$id"; exit 1; }
    sleep 0.2
done
arcget -j jobs.db -D got "$id" >/dev/null 2>&1 || { echo "arcget failed"; exit 1; }
echo "id $id"; cat got/*/out
"""
_SLURM = """
set -eu
echo "id srun"; srun --ntasks=1 sh -c 'echo TOKEN; hostname'
"""


def first_job(site: Site) -> FirstJob:
    """Submit a job as a user would and wait for its result: through ARC where there is a CE, else with srun.

    Raises:
        VerificationError: it failed, or its output is not what it should be.
    """
    ce, controller = site.first_node_with("arc_ce"), site.first_node_with("slurm_controller")
    frontend = ce or controller
    if frontend is None:
        raise VerificationError(f"cluster {site.spec.name} has neither a CE nor a batch system: there is no job to run")
    through, script = ("ARC", _ARC) if ce else ("Slurm", _SLURM)
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

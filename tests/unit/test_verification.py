"""What a site is checked with: what it offers, and no more often than it has to be."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from gridstead.cluster import verification
from gridstead.cluster.paths import SitePaths
from gridstead.cluster.site import Site
from gridstead.cluster.spec import Cluster

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The checks that were made, in place of making them."""
    made: list[tuple[Any, ...]] = []
    for name in ("_first_job", "_first_file"):
        monkeypatch.setattr(verification, name, lambda _site, *arguments, name=name: made.append((name, *arguments)))
    return made


def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **kinds: list[str]) -> Site:
    monkeypatch.setenv("GRIDSTEAD_STATE", str(tmp_path))
    spec = Cluster.model_validate({"name": "x", "nodes": {kind: {"count": 1, "services": services} for kind, services in kinds.items()}})
    (tmp_path / "x").mkdir(exist_ok=True)
    return Site(spec, SitePaths(tmp_path / "cluster.yml", "x"), cast(Any, None), cast(Any, SimpleNamespace()))


@pytest.mark.parametrize(
    ("kinds", "check"),
    [
        ({"head": ["nfs_server", "slurm_controller", "arc_ce"], "compute": ["nfs_client", "slurm_node"]}, ("_first_job", "head001", "ARC")),
        (
            {
                "ce": ["nfs_client", "arc_ce", "slurm_client"],
                "head": ["nfs_server", "slurm_controller"],
                "compute": ["nfs_client", "slurm_node"],
            },
            ("_first_job", "ce001", "ARC"),
        ),
        ({"login": ["slurm_client"], "head": ["slurm_controller"], "compute": ["slurm_node"]}, ("_first_job", "login001", "Slurm")),
        ({"head": ["slurm_controller", "nfs_server"], "compute": ["slurm_node", "nfs_client"]}, ("_first_job", "head001", "Slurm")),
        ({"head": ["slurm_controller", "arc_ce"]}, None),
        ({"server": ["nfs_server", "slurm_controller"], "worker": ["nfs_client"]}, ("_first_file", "/grid", "server001", "worker001")),
        ({"server": ["nfs_server"]}, None),
        ({"proxy": ["cvmfs_squid"]}, None),
    ],
)
def test_the_check_fits_what_the_site_offers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    checks: list[tuple[Any, ...]],
    kinds: dict[str, list[str]],
    check: tuple[str, ...] | None,
) -> None:
    trial = site(tmp_path, monkeypatch, **kinds)
    verification.first_check(trial)
    assert checks == ([check] if check else [])
    assert verification.stands(trial)


def test_a_check_stands_for_a_while_and_not_when_something_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checks: list[tuple[Any, ...]]
) -> None:
    trial = site(tmp_path, monkeypatch, server=["nfs_server"], worker=["nfs_client"])
    assert not verification.stands(trial), "never checked"
    verification.first_check(trial)
    assert verification.stands(trial)
    long_ago = time.time() - verification.STANDS - 1
    os.utime(trial.paths.checked, (long_ago, long_ago))
    assert not verification.stands(trial)
    verification.first_check(trial)
    monkeypatch.setattr(verification, "_first_file", lambda *_: (_ for _ in ()).throw(verification.VerificationError("no")))
    trial.paths.checked.unlink()
    with pytest.raises(verification.VerificationError):
        verification.first_check(trial)
    assert not verification.stands(trial), "a check that failed"
    assert len(checks) == 2


# -- why the first job failed ------------------------------------------------------------------------------------------

JOB = "abcdefghijkl"
#: As the A-REX writes them: with the whole job script between two lines, in which errors are only spoken of.
ERRORS = """----- starting submit_slurm_job -----
SLURM script follows:
------------------------------
echo "Failed to switch" 1>&2
------------------------------
job submitted successfully!
------- Contents of output stream forwarded by the LRMS ---------
slurmstepd: error: couldn't chdir to /grid/session
------------------------- End of output -------------------------
Job state change INLRMS -> FINISHING   Reason: Job failure detected
"""


def failed(tmp_path: Path, *, notes: dict[str, str], output: str = "", arcget: int = 0) -> str:
    """What the first job's script says, of a job that ended with these notes of the A-REX on it."""
    tools, control = tmp_path / "tools", tmp_path / "control"
    told = control / "jobs" / JOB[:3] / JOB[3:6] / JOB[6:9] / JOB[9:]
    told.mkdir(parents=True)
    for name, text in notes.items():
        (told / name).write_text(text)
    (tmp_path / "arc.conf").write_text(f"[arex]\ncontroldir={control}\n")
    tools.mkdir()
    programs = {
        "arcsub": f"echo 'Job submitted with jobid: file://localhost/{JOB}'",
        "arcstat": "printf ' State: Finished\\n Job error: LRMS error: (271) it was killed\\n'",
        "arcget": f"mkdir -p got/{JOB}; printf '{output}' >got/{JOB}/out; echo gone for good; rm -r {told}; exit {arcget}",
        "scontrol": "[ $4 = 42 ] && echo 'JobId=42 JobName=x JobState=FAILED Reason=NonZeroExitCode ExitCode=127:0 ReqNodeList=(null) NodeList=compute001 StdErr=/not/there A=b'",
    }
    for name, script in programs.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    environment = {"PATH": f"{tools}:/usr/bin:/bin", "ARC_CONFIG": str(tmp_path / "arc.conf"), "TMPDIR": str(tmp_path)}
    script = verification._ARC.replace("TOKEN", "secret").replace("LIMIT", "1")
    done = subprocess.run(["sh"], input=script, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == (0 if output.startswith("secret") else 1)
    return done.stdout


def test_a_first_job_that_came_back(tmp_path: Path) -> None:
    said = failed(tmp_path, notes={"local": "localid=42\n"}, output="secret\\ncompute001\\n")
    assert said == f"id file://localhost/{JOB}\nsecret\ncompute001\n"


def test_what_failed_in_slurm_is_told_with_slurms_reason(tmp_path: Path) -> None:
    said = failed(tmp_path, notes={"local": "localid=42\n", "failed": "LRMS error: (127) command not found\n", "errors": ERRORS})
    where = f"{tmp_path}/control/jobs/abc/def/ghi/jkl"
    assert said.splitlines() == [
        "arcstat: State: Finished",
        "arcstat: Job error: LRMS error: (271) it was killed",
        f"A-REX ({where}/failed): LRMS error: (127) command not found",
        f"A-REX ({where}/errors): slurmstepd: error: couldn't chdir to /grid/session",
        "Slurm (scontrol show job 42): JobState=FAILED Reason=NonZeroExitCode ExitCode=127:0 NodeList=compute001",
        f"/not/there, where the job's node writes what goes wrong, says nothing on {socket.gethostname()}: does that node see the same file system?",
    ]


def test_what_never_came_to_slurm_is_told_so(tmp_path: Path) -> None:
    said = failed(
        tmp_path, notes={"local": "", "failed": "Job submission to LRMS failed\n", "errors": "sbatch: error: no such partition\n"}
    )
    assert "sbatch: error: no such partition" in said
    assert "Slurm: ARC has not brought it there" in said


def test_what_ended_well_and_brought_nothing_is_told_with_what_slurm_knows(tmp_path: Path) -> None:
    """The A-REX forgets a job with its results: Slurm's number was kept."""
    said = failed(tmp_path, notes={"local": "localid=42\n"}, output="another")
    assert said.startswith("it ended well, and its output is not what it printed")
    assert "Slurm (scontrol show job 42)" in said
    assert "the job's own out: another" in said
    assert "arcget: gone for good" in failed(tmp_path / "again", notes={"local": "localid=42\n"}, arcget=1)


@pytest.mark.parametrize(
    ("srun", "limit", "status", "says"),
    [
        ("echo secret; echo compute001", 30, 0, "id srun\nsecret\ncompute001\n"),
        ("echo srun: error: no such partition >&2; exit 1", 30, 1, "id srun\n"),
        ("while [ ! -e cancelled ]; do sleep 0.05; done; exit 9", 0, 9, "Slurm (squeue): job 7 is PENDING, reason ReqNodeNotAvail\n"),
    ],
)
def test_a_first_job_by_srun(tmp_path: Path, srun: str, limit: int, status: int, says: str) -> None:
    programs = {"srun": srun, "squeue": "echo 'job 7 is PENDING, reason ReqNodeNotAvail'", "scancel": "touch cancelled"}
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    script = verification._SLURM.replace("TOKEN", "secret").replace("LIMIT", str(limit))
    done = subprocess.run(
        ["sh"],
        input=script,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == status
    assert done.stdout.endswith(says)

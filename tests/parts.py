"""The parts of the test-suite: what each runs, where it may run, how long it may take.

A part is a list of commands; it fails when one of them does, and the other parts run all the same, but for those that cannot
without it (no node boots without the image). Whatever a part makes on this machine is gone when it ends, however it ends.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import queue
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import evidence
import scenarios
from runs import ROOT, Run, StoppedError, TimeIsUpError, Worker, refuse, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: The names of the sites that the end-to-end parts build: never that of an operator's own site on this machine, and each its own,
#: because what is kept of a site on the controller goes by its name and knows no provider.
SITE_NAME = "gridstead-test"
VIRTUAL_SITE_NAME = "gridstead-test-vm"
CLUSTER = ROOT / "tools/cluster"
CLOUD = ROOT / "tests/cloud/cloud"
#: How many times part long tries the property tests, each time with other examples.
EXPLORATIONS = 10


def lint(run: Run) -> None:
    """Formats, types, import rules, YAML, shell, Ansible's production profile."""
    run("ruff", "check", "--quiet", ".")
    run("ruff", "format", "--check", "--quiet", ".")
    run("mypy")
    run("lint-imports", "--no-cache", "--no-logo")
    run("yamllint", "--strict", ".")
    run("shellcheck", "--external-sources", "--source-path=SCRIPTDIR", *shell_scripts(), title="shellcheck")
    run("ansible-lint", "-q", "--offline")


def unit(run: Run) -> None:
    """The engine's pure parts: no root, no network, no nodes."""
    run("pytest", "-n", "auto", "--doctest-modules", "tests/unit", *scenarios.ansible_modules(), *run.arguments)


def image(run: Run) -> None:
    """Builds the node image, or finds it built."""
    run(ROOT / "tools/bootstrap.sh", "system", title="system packages")
    run(CLUSTER, "image", "build")


def conformance(run: Run) -> None:
    """The provider test-suite, against containers."""
    run("pytest", "-v", "tests/conformance", *run.arguments)


def openstack(run: Run) -> None:
    """The OpenStack provider against a real OpenStack here: provider test-suite, faults on its APIs; then a site on virtual machines."""
    with test_cloud(run, "fake") as told:
        if told:
            run("pytest", "-v", "tests/conformance", "--provider", "openstack", *run.arguments)
            run("pytest", "-v", "tests/api_faults", *run.arguments)
            # The same cloud goes on: its other zone is added, which takes a third of another start.
            virtual_site(run, ON_VIRTUAL_MACHINES)


def openstack_full(run: Run) -> None:
    """All end-to-end tests and autoscaling on virtual machines of that OpenStack, their root disks volumes; openstack runs some of them."""
    with test_cloud(run, "real") as told:
        if told:
            changes = [(r"(?m)^    anti_affinity: true$", "    anti_affinity: true\n    root_volume: 5G")]
            virtual_site(run, ["tests/e2e"], changes, whole=["tests/faults/test_autoscale.py"])


def e2e(run: Run) -> None:
    """A whole site from nothing, each service on its own node; jobs from ARC's client through the CE and Slurm and back."""
    with site(run, "split", SITE_NAME) as where:
        if where:
            run("pytest", "-v", "tests/e2e", "--site", where, *run.arguments)


def faults(run: Run) -> None:
    """What goes wrong: killed runs, dead nodes, scaling, reboots, bad input; on a site of its own."""
    # Beside another lane, without the tests that need the machine's podman for themselves: part machine runs those.
    run("pytest", "-v", "tests/faults", *(["-m", "not machine"] if run.lanes else []), *run.arguments)


def machine(run: Run) -> None:
    """The fault tests that need this machine's podman for themselves; part faults, run alone, has them too."""
    run("pytest", "-v", "tests/faults", "-m", "machine", *run.arguments)


def molecule(run: Run) -> None:
    """Each role on nodes: converge, idempotence, testinfra; `molecule ROLE ...` for some. One scenario may be several roles'."""
    known = scenarios.of_roles()
    for wrong in set(run.arguments) - set(known):
        refuse(f"no role {wrong!r} with a molecule scenario; there are: {', '.join(known)}")
    if not run.arguments:
        for complaint in scenarios.complaints():
            run.fail(complaint)
    wanted: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for where in sorted({known[role] for role in run.arguments or known}):
        wanted.put(where)
    # Two at a time where nothing else runs: a scenario leaves most of a processor free. Looked at anew after each scenario.
    second = Worker(target=_scenarios, args=[run, wanted], kwargs={"only_alone": True})
    second.start()
    try:
        _scenarios(run, wanted)
    except BaseException:
        run.stop.set()
        raise
    finally:
        second.wait()


def _scenarios(run: Run, wanted: queue.SimpleQueue[Path], *, only_alone: bool = False) -> None:
    """Run scenarios until none is left; the second of two only while no other lane is at work."""
    while not run.stop.is_set():
        if only_alone and not run.alone:
            if wanted.empty():
                return
            time.sleep(1)
            continue
        try:
            where = wanted.get_nowait()
        except queue.Empty:
            return
        try:
            _scenario(run, where)
        except Exception as error:
            if not only_alone:
                raise
            # A thread's error would be lost. Of time and interruption the other one tells.
            if not isinstance(error, StoppedError | TimeIsUpError):
                run.fail(f"role {where.name}: {type(error).__name__}: {error}")
            return


def _scenario(run: Run, where: Path) -> None:
    """The scenario of the role that lies there; its nodes are gone afterwards."""
    role = where.name
    prefix = f"{role}: "
    started = time.monotonic()
    # As `tools/cluster up` runs Ansible; a plain `molecule test` in a role's directory takes Ansible's own, slower, strategy.
    env = {}
    mitogen = importlib.util.find_spec("ansible_mitogen")
    if mitogen and mitogen.submodule_search_locations:
        env["ANSIBLE_STRATEGY"] = "mitogen_linear"
        env["ANSIBLE_STRATEGY_PLUGINS"] = str(Path(mitogen.submodule_search_locations[0]) / "plugins/strategy")
    # Molecule's own place for its state is one for all checkouts of a user; two of them would disturb each other.
    with tempfile.TemporaryDirectory(prefix="gridstead-molecule-") as scratch:
        env["MOLECULE_EPHEMERAL_DIRECTORY"] = scratch
        done = False
        try:
            # Not destroyed by molecule: what failed is looked at first.
            done = run("molecule", "test", "--destroy=never", cwd=where, title=f"role {role}", env=env, prefix=prefix)
        finally:
            if not done:
                keep_evidence(where / "molecule/default", f"molecule-{role}")
            run.clean(
                *(CLUSTER, "--site", where / "molecule/default", "down", "--volumes", "--yes", "--quiet"),
                title=f"take down the nodes of role {role}",
                prefix=prefix,
            )
    say(f"--- molecule: role {role} took {time.monotonic() - started:.0f} s")


def long(run: Run) -> None:
    """For nights and before a release: what takes too long for each commit, property tests on new examples, the test cloud's own life."""
    seed = int(run.arguments[0]) if run.arguments else secrets.randbelow(2**32)
    say(f"--- long: property tests explore from seed {seed}; the same again with: tools/test long {seed}")
    for number in range(EXPLORATIONS):
        options = ["--hypothesis-profile=explore", f"--hypothesis-seed={seed + number}"]
        run("pytest", "-q", "-n", "auto", "-m", "hypothesis", "tests/unit", *options, title=f"property tests, seed {seed + number}")
    run("pytest", "-v", "tests/cloud/test_life.py")
    openstack_full(run)


def bench(run: Run) -> None:
    """Times beside their floors, as tables for README: site, cvmfs_publish, cvmfs_client, openstack_api; `bench NAME ...` for some."""
    known = sorted(path.stem for path in ROOT.glob("tests/bench/*.py"))
    for wrong in set(run.arguments) - set(known):
        refuse(f"no benchmark {wrong!r}; there are: {', '.join(known)}")

    def measure(name: str, *arguments: str | Path) -> None:
        run(sys.executable, f"tests/bench/{name}.py", *arguments, title=f"bench {name}")

    for name in run.arguments or known:
        match name:
            case "openstack_api":
                with test_cloud(run, "fake") as told:
                    if told:
                        measure(name)
            case "cvmfs_client":
                with site(run, "local", SITE_NAME) as where:
                    if where:
                        measure(name, "--site", where)
            case _:
                measure(name)


def lock(run: Run) -> None:
    """Writes requirements/*.txt anew from pyproject.toml, every version as late as the ranges allow."""
    scratch = Path(tempfile.mkdtemp(prefix="gridstead-lock."))
    try:
        for name, options in (
            ("run", ["--extra=openstack"]),
            ("test", ["--all-extras", f"--constraints={scratch / 'run.txt'}"]),
        ):
            done = run(
                *("uv", "pip", "compile", "pyproject.toml", *options, f"--output-file={scratch / name}.txt"),
                # For every Python from 3.11 and all its wheels, and with nothing in it about where they came from.
                *("--universal", "--python-version=3.11", "--generate-hashes", "--no-annotate", "--upgrade"),
                *("--no-header", "--no-emit-index-url", "--no-emit-find-links", "--no-config", "--quiet"),
                title=f"lock {name}",
            )
            if not done:
                return
        for name in ("run", "test"):
            shutil.copyfile(scratch / f"{name}.txt", ROOT / "requirements" / f"{name}.txt")
    finally:
        shutil.rmtree(scratch)


@dataclass(frozen=True)
class Part:
    """A part of the test-suite.

    Args:
        run: what it does.
        lane: with which others it runs one after the other in a whole run (see lanes.STAGES); None for not at all.
        limit_s: seconds after which it is ended; several times what it takes on a quiet machine, so that only what hangs gets there.
        nodes: it makes nodes on this machine.
        cloud: it brings up the test cloud.
    """

    run: Callable[[Run], None]
    lane: str | None = None
    limit_s: float | None = None
    nodes: bool = False
    cloud: bool = False

    @property
    def name(self) -> str:
        """What to call it by."""
        return self.run.__name__.replace("_", "-")

    @property
    def text(self) -> str:
        """What it does, a line."""
        return (self.run.__doc__ or "").partition("\n")[0]


PARTS = {
    part.name: part
    for part in (
        Part(lint, lane="quick", limit_s=1200),
        Part(unit, lane="quick", limit_s=1500),
        Part(image, lane="image", limit_s=1500, nodes=True),
        Part(openstack, lane="cloud", limit_s=3600, nodes=True, cloud=True),
        Part(conformance, lane="containers", limit_s=900, nodes=True),
        Part(e2e, lane="containers", limit_s=1500, nodes=True),
        Part(faults, lane="containers", limit_s=2400, nodes=True),
        Part(molecule, lane="containers", limit_s=3000, nodes=True),
        Part(machine, lane="alone", limit_s=600, nodes=True),
        Part(openstack_full, limit_s=7200, nodes=True, cloud=True),
        Part(long, limit_s=14400, nodes=True, cloud=True),
        Part(bench, nodes=True, cloud=True),
        Part(lock, limit_s=1200),
    )
}


def shell_scripts() -> list[str]:
    """All committed shell scripts, whatever their name; not templates, which are none yet."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    found = []
    for name in filter(None, names):
        path = ROOT / name
        if path.is_file() and not path.is_symlink() and path.suffix != ".j2":
            with path.open("rb") as stream:
                if re.match(rb"#!.*\b(ba|da)?sh\b", stream.readline(128)):
                    found.append(name)
    return found


def keep_evidence(where: Path, label: str) -> None:
    """Keep what a site's state tells of a failure, and print where and what matters most."""
    try:
        told = evidence.keep(str(where), label)
    except OSError as error:  # a full disk, say: the failure itself is told all the same
        told = f"none kept: {error}"
    for line in told.splitlines():
        say(f"--- evidence: {line}")


#: Variables of the sites that tests build: they wait until clients look for what is published, which takes a minute by default.
FOR_TESTS = """
cvmfs_stratum0_ttl: 5
cvmfs_stratum0_manifest_max_age: 2
"""


@contextlib.contextmanager
def site(run: Run, name: str, called: str, changes: Sequence[tuple[str, str]] = ()) -> Iterator[Path | None]:
    """A copy of a site under inventories/ with the tests' own name, up; None when it does not come up. Gone at the end.

    Args:
        run: the part's run.
        name: the site's directory.
        called: the copy's name.
        changes: regular expressions and what takes the place of what they find in its cluster.yml.
    """
    scratch = Path(tempfile.mkdtemp(prefix="gridstead-test."))
    where = scratch / called
    failures = len(run.failures)
    try:
        shutil.copytree(ROOT / "inventories" / name, where)
        spec = where / "cluster.yml"
        text = spec.read_text()
        for pattern, replacement in ((r"(?m)^name: .*$", f"name: {called}"), *changes):
            text, found = re.subn(pattern, replacement, text)
            if not found:
                raise LookupError(f"{spec}: nothing like {pattern} to change for the tests")
        spec.write_text(text)
        with (where / "group_vars" / "all.yml").open("a") as variables:
            variables.write(FOR_TESTS)
        up = run(CLUSTER, "--site", where, "up", "--no-verify", title="up from nothing")
        yield where if up else None
    finally:
        if len(run.failures) > failures:
            keep_evidence(where, f"{run.part}-{called}")
        run.clean(CLUSTER, "--site", where, "down", "--volumes", "--yes", title="down")
        shutil.rmtree(scratch)


#: What inventories/openstack is on the test cloud (see tests/cloud): its own flavors, small volumes, one compute node.
ON_TEST_CLOUD = (
    (r"(?m)^provider: openstack$", "provider: openstack\nopenstack: {availability_zone: real}"),
    (r"flavor: \{cpus: 2, memory: 2048\}", "flavor: {name: real.large}"),
    (r"flavor: \{cpus: 1, memory: 1024\}", "flavor: {name: real.small}"),
    (r"size: 10G", "size: 2G"),
    (r"(?m)^    count: 2$", "    count: 1"),
)


#: Of the end-to-end tests, what is different on virtual machines, and a job of each kind: emulated, all of them take an hour.
ON_VIRTUAL_MACHINES = (
    "tests/e2e/test_boot.py",
    "tests/e2e/test_host_keys.py",
    "tests/e2e/test_security_groups.py",
    "tests/e2e/test_slurm.py::test_srun_over_all_nodes",
    "tests/e2e/test_slurm.py::test_completed_job_is_accounted",
    "tests/e2e/test_slurm.py::test_cancelled_job_leaves_no_process",
    "tests/e2e/test_slurm.py::test_shared_directories",
    "tests/e2e/test_slurm.py::test_volumes_are_mounted_by_uuid",
    "tests/e2e/test_arc.py::test_a_job_with_files",
    "tests/e2e/test_cvmfs.py::test_a_job_runs_software_from_cvmfs",
)


def virtual_site(run: Run, tests: Sequence[str], changes: Sequence[tuple[str, str]] = (), whole: Sequence[str] = ()) -> None:
    """The OpenStack site on virtual machines of the test cloud, which is up, and tests on it.

    Args:
        run: the part's run.
        tests: end-to-end tests.
        changes: as for ``site``.
        whole: fault tests that take the whole site.
    """
    told = add_zone(run, "real")
    if not told:
        return
    names = re.search(r"DNS for subnets: (\S+)", told)
    resolver = [(r"# dns: \[.*", f"dns: [{names[1]}]")] if names else []
    env = {"GRIDSTEAD_TEST_PATIENCE": "6"} if "virtual machines of zone real: emulated" in told else {}
    with site(run, "openstack", VIRTUAL_SITE_NAME, (*ON_TEST_CLOUD, *resolver, *changes)) as where:
        if where:
            run("pytest", "-v", *tests, "--site", where, *run.arguments, env=env)
            if whole:
                run("pytest", "-v", *whole, "--whole", where, *run.arguments, env=env)


@contextlib.contextmanager
def test_cloud(run: Run, zones: str) -> Iterator[str]:
    """The test cloud, up, and the environment that names it; what `cloud env` says, or nothing when it does not come up.

    A cloud that was up before, an operator's rehearsal, stays up; any other is gone at the end.
    """
    before = dict(os.environ)
    was_up = subprocess.run([CLOUD, "status"], capture_output=True, timeout=120, check=False).returncode == 0
    failures = len(run.failures)
    try:
        told = add_zone(run, zones)
        if told:
            os.environ.update(re.findall(r"(?m)^export (\w+)=(.*)$", told.replace("'", "")))
        yield told
    finally:
        if len(run.failures) > failures:
            keep_cloud_logs()
        os.environ.clear()
        os.environ.update(before)
        if not was_up:
            run.clean(CLOUD, "down", title="test cloud down")


def add_zone(run: Run, zones: str) -> str:
    """Have the test cloud be up with at least these zones; what `cloud env` says, or nothing when it does not come up."""
    if not run(CLOUD, "up", "--zones", zones, title=f"test cloud, zone {zones}"):
        return ""
    return subprocess.run([CLOUD, "env"], check=True, capture_output=True, text=True, timeout=60).stdout


def keep_cloud_logs() -> None:
    """Keep the end of each log of the test cloud's services, and print where."""
    logs = Path(os.environ.get("GRIDSTEAD_CLOUD_DATA") or "/var/lib/gridstead-cloud") / "state/log"
    with contextlib.suppress(OSError):
        where = evidence.place("cloud")
        for path in sorted(logs.glob("*.log")):
            with path.open("rb") as stream:
                stream.seek(max(0, path.stat().st_size - 2**20))
                (where / path.name).write_bytes(stream.read())
        say(f"--- evidence: the test cloud's logs in {where}")


def why_not(part: Part, failed: Sequence[str]) -> str | None:
    """Why a part cannot run here, or None."""
    if part.nodes and os.geteuid() != 0:
        return "nodes as containers need root"
    if part.nodes and part.name != "image" and "image" in failed:
        return "the image part failed"
    return None

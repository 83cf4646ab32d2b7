"""The test command's inside: runs the parts of the test-suite, cheapest first, and adds them up.

``tools/test`` starts it in the virtual environment. Every part is a list of commands; a part fails when one
of them does, and the other parts run all the same, but for those that cannot without it (no node boots
without the image). Whatever a part makes on this machine is gone when it ends, however it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).resolve().parent.parent
#: The name of the site that the end-to-end parts build: never that of an operator's own site on this machine.
SITE_NAME = "gridstead-test"
#: Silence on a long run looks like a hang, to people and to CI: say something after so many seconds.
HEARTBEAT_S = 60.0
#: pytest's closing line: "==== 3 failed, 12 passed, 1 skipped in 4.20s ====", bare with -q.
_PYTEST_END = re.compile(r"^(?:=+ )?((?:\d+ [a-z]+(?:, )?)+) in \d+[.\d]*s(?: \(.*\))?(?: =+)?$")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Count:
    """How many checks passed, failed, were skipped."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def add(self, other: Count) -> None:
        """Add another count to this one."""
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def __str__(self) -> str:
        """The plain closing line that CI reads."""
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def count_of(line: str) -> Count | None:
    """What a line says when it is pytest's closing line."""
    match = _PYTEST_END.match(_ANSI.sub("", line).strip())
    if match is None:
        return None
    count = Count()
    for number, word in re.findall(r"(\d+) ([a-z]+)", match[1]):
        if word in {"passed", "xfailed"}:
            count.passed += int(number)
        elif word in {"failed", "error", "errors", "xpassed"}:
            count.failed += int(number)
        elif word == "skipped":
            count.skipped += int(number)
    return count


@dataclass
class Run:
    """One part's run: its commands go through here."""

    part: str
    arguments: tuple[str, ...] = ()
    count: Count = field(default_factory=Count)
    failures: list[str] = field(default_factory=list)

    def __call__(self, *command: str | Path, cwd: Path = ROOT, title: str = "") -> bool:
        """Run a command, its output passed on as it comes.

        Args:
            command: the program and its arguments.
            cwd: where to run it.
            title: what to call it, when its first words do not tell.

        Returns:
            Whether it succeeded.
        """
        words = [str(word) for word in command]
        name = title or " ".join(Path(word).name if word.startswith("/") else word for word in words[:4])
        say(f"--- {self.part}: {name}")
        started = time.monotonic()
        told: Count | None = None
        with _child(words, cwd) as process:
            for line in _lines(process, f"    {self.part}: {name}"):
                sys.stdout.write(line)
                sys.stdout.flush()
                told = count_of(line) or told
            status = process.wait()
        good = status == 0
        # A command that counts nothing is one check. One that failed outside its tests (a collection error, a crash) must show too.
        counted = told or Count(passed=int(good))
        counted.failed = max(counted.failed, int(not good))
        self.count.add(counted)
        if not good:
            self.failures.append(f"{name} (exit {status})")
            say(f"--- {self.part}: FAILED: {name}, exit {status}, after {time.monotonic() - started:.0f} s")
        return good

    def fail(self, why: str) -> None:
        """Note a failure that is no command's."""
        self.count.failed += 1
        self.failures.append(why)
        say(f"--- {self.part}: FAILED: {why}")

    def clean(self, *command: str | Path, title: str) -> None:
        """Run a clean-up command; it counts only when it fails."""
        before = self.count.passed
        if self(*command, title=title):
            self.count.passed = before


@contextlib.contextmanager
def _child(words: Sequence[str], cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A child process that is gone at the end, with its own children: they are asked first, then killed."""
    process = subprocess.Popen(
        words,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            for sign, patience in ((signal.SIGTERM, 30), (signal.SIGKILL, 5)):
                with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, sign)
                    process.wait(patience)
                    break
        if process.stdout:
            process.stdout.close()


def _lines(process: subprocess.Popen[bytes], name: str) -> Iterator[str]:
    """The child's lines as they come, and a sign of life when none comes.

    The end is the process's, not the pipe's: a daemon that the command left behind may hold the pipe open.
    """
    assert process.stdout is not None, "stdout=PIPE makes it one"
    started = spoke = time.monotonic()
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            ended = process.poll() is not None
            if selector.select(timeout=0 if ended else 1):
                chunk = os.read(process.stdout.fileno(), 65536)
                if not chunk:
                    break
                spoke = time.monotonic()
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    yield line.decode(errors="replace") + "\n"
            elif ended:
                break
            elif time.monotonic() - spoke > HEARTBEAT_S:
                spoke = time.monotonic()
                yield f"{name}: running for {spoke - started:.0f} s\n"
    if rest:
        yield rest.decode(errors="replace") + "\n"


def say(text: str) -> None:
    """Print a line of the runner's own."""
    print(text, flush=True)


# ------------------------------------------------------------------------------------------------ the parts


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
    modules = sorted(
        [*ROOT.glob("roles/*/library/*.py"), *ROOT.glob("tools/ansible/modules/*.py")]
    )  # Ansible's; their examples are their tests
    run("pytest", "-n", "auto", "--doctest-modules", "tests/unit", *modules, *run.arguments)


def image(run: Run) -> None:
    """Builds the node image, or finds it built."""
    run(ROOT / "tools/bootstrap.sh", "system", title="system packages")
    run(ROOT / "tools/cluster", "image", "build")


def molecule(run: Run) -> None:
    """Each role on nodes: converge, idempotence, testinfra; `molecule ROLE ...` for some. One scenario may be several roles'."""
    known = scenarios()
    for wrong in set(run.arguments) - set(known):
        refuse(f"no role {wrong!r} with a molecule scenario; there are: {', '.join(known)}")
    for role in sorted(path.name for path in ROOT.glob("roles/*") if path.name not in known):
        run.fail(f"role {role} has no tests")
    # As `tools/cluster up` runs Ansible; a plain `molecule test` in a role's directory takes Ansible's own, slower, strategy.
    mitogen = importlib.util.find_spec("ansible_mitogen")
    if mitogen and mitogen.submodule_search_locations:
        os.environ["ANSIBLE_STRATEGY"] = "mitogen_linear"
        os.environ["ANSIBLE_STRATEGY_PLUGINS"] = str(Path(mitogen.submodule_search_locations[0]) / "plugins/strategy")
    for where in sorted({known[role] for role in run.arguments or known}):
        role = where.name
        started = time.monotonic()
        done = False
        # Molecule's own place for its state is one for all checkouts of a user; two of them would disturb each other.
        with tempfile.TemporaryDirectory(prefix="gridstead-molecule-") as scratch:
            os.environ["MOLECULE_EPHEMERAL_DIRECTORY"] = scratch
            try:
                done = run("molecule", "test", cwd=where, title=f"role {role}")
            finally:
                # molecule destroys at its end, also of a failed run, but not when it is killed.
                if not done:
                    run.clean(
                        ROOT / "tools/cluster",
                        "--site",
                        where / "molecule/default",
                        "down",
                        "--volumes",
                        "--yes",
                        title=f"clean up after {role}",
                    )
        say(f"--- molecule: role {role} took {time.monotonic() - started:.0f} s")


def conformance(run: Run) -> None:
    """The provider test-suite, against containers."""
    run("pytest", "-v", "tests/conformance", *run.arguments)


def openstack(run: Run) -> None:
    """The OpenStack provider against a real OpenStack here: provider test-suite, faults on its APIs; then a site on virtual machines."""
    with test_cloud(run, "fake") as told:
        if told:
            run("pytest", "-v", "tests/conformance", "--provider", "openstack", *run.arguments)
            run("pytest", "-v", "tests/api_faults", *run.arguments)
    virtual_site(run, ON_VIRTUAL_MACHINES)


def openstack_full(run: Run) -> None:
    """All end-to-end tests on virtual machines of that OpenStack, compute nodes booted from volumes; openstack runs some of them."""
    virtual_site(run, ["tests/e2e"], [(r"(?m)^    anti_affinity: true$", "    anti_affinity: true\n    root_volume: 5G")])


def e2e(run: Run) -> None:
    """A whole site from nothing; jobs from ARC's client through the CE and Slurm and back."""
    with site(run, "local") as where:
        if where:
            run("pytest", "-v", "tests/e2e", "--site", where, *run.arguments)


def faults(run: Run) -> None:
    """What goes wrong: killed runs, dead nodes, scaling, reboots, bad input; on a site of its own."""
    run("pytest", "-v", "tests/faults", *run.arguments)


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
                with site(run, "local") as where:
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
    """A part of the test-suite."""

    run: Callable[[Run], None]
    #: Runs with no part named.
    default: bool = True
    #: Makes nodes on this machine.
    nodes: bool = False

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
        Part(lint),
        Part(unit),
        Part(image, nodes=True),
        Part(conformance, nodes=True),
        Part(openstack, nodes=True),
        Part(e2e, nodes=True),
        Part(faults, nodes=True),
        Part(molecule, nodes=True),
        Part(openstack_full, default=False, nodes=True),
        Part(bench, default=False, nodes=True),
        Part(lock, default=False),
    )
}


# ------------------------------------------------------------------------------------------------ their helpers


def scenarios() -> dict[str, Path]:
    """The directory of the role with whose scenario each role is tested: the scenario that has the role's tests."""
    found = {
        path.stem.removeprefix("test_"): path.parents[3]
        for path in sorted(ROOT.glob("roles/*/molecule/default/tests/test_*.py"))
        if (path.parent.parent / "molecule.yml").exists()
    }
    return {role: where for role, where in found.items() if (ROOT / "roles" / role).is_dir()}


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


#: Variables of the sites that tests build: they wait until clients look for what is published, which takes a minute by default.
FOR_TESTS = """
cvmfs_stratum0_ttl: 5
cvmfs_stratum0_manifest_max_age: 2
"""


@contextlib.contextmanager
def site(run: Run, name: str, changes: Sequence[tuple[str, str]] = ()) -> Iterator[Path | None]:
    """A copy of a site under inventories/ with the tests' own name, up; None when it does not come up. Gone at the end.

    Args:
        run: the part's run.
        name: the site's directory.
        changes: regular expressions and what takes the place of what they find in its cluster.yml.
    """
    scratch = Path(tempfile.mkdtemp(prefix="gridstead-test."))
    where = scratch / SITE_NAME
    cluster = ROOT / "tools/cluster"
    try:
        shutil.copytree(ROOT / "inventories" / name, where)
        spec = where / "cluster.yml"
        text = spec.read_text()
        for pattern, replacement in ((r"(?m)^name: .*$", f"name: {SITE_NAME}"), *changes):
            text, found = re.subn(pattern, replacement, text)
            if not found:
                raise LookupError(f"{spec}: nothing like {pattern} to change for the tests")
        spec.write_text(text)
        with (where / "group_vars" / "all.yml").open("a") as variables:
            variables.write(FOR_TESTS)
        up = run(cluster, "--site", where, "up", "--no-verify", title="up from nothing")
        yield where if up else None
    finally:
        run.clean(cluster, "--site", where, "down", "--volumes", "--yes", title="down")
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


def virtual_site(run: Run, tests: Sequence[str], changes: Sequence[tuple[str, str]] = ()) -> None:
    """The OpenStack site on the test cloud's virtual machines, up, and tests on it; ``changes`` as for ``site``."""
    with test_cloud(run, "real") as told:
        if told:
            names = re.search(r"DNS for subnets: (\S+)", told)
            resolver = [(r"# dns: \[.*", f"dns: [{names[1]}]")] if names else []
            if "virtual machines of zone real: emulated" in told:
                os.environ["GRIDSTEAD_TEST_PATIENCE"] = "6"
            with site(run, "openstack", (*ON_TEST_CLOUD, *resolver, *changes)) as where:
                if where:
                    run("pytest", "-v", *tests, "--site", where, *run.arguments)


@contextlib.contextmanager
def test_cloud(run: Run, zones: str) -> Iterator[str]:
    """The test cloud, up, and the environment that names it; what `cloud env` says, or nothing when it does not come up.

    A cloud that was up before, an operator's rehearsal, stays up; any other is gone at the end.
    """
    cloud = ROOT / "tests/cloud/cloud"
    before = dict(os.environ)
    was_up = subprocess.run([cloud, "status"], capture_output=True, timeout=120, check=False).returncode == 0
    told = ""
    try:
        if run(cloud, "up", "--zones", zones, title=f"test cloud, zone {zones}"):
            told = subprocess.run([cloud, "env"], check=True, capture_output=True, text=True, timeout=60).stdout
            os.environ.update(re.findall(r"(?m)^export (\w+)=(.*)$", told.replace("'", "")))
        yield told
    finally:
        os.environ.clear()
        os.environ.update(before)
        if not was_up:
            run.clean(cloud, "down", title="test cloud down")


def refuse(message: str) -> NoReturn:
    """End with the exit code of bad input."""
    print(f"test: {message}", file=sys.stderr)
    raise SystemExit(2)


def why_not(part: Part, failed: Sequence[str]) -> str | None:
    """Why a part cannot run here, or None."""
    if part.nodes and os.geteuid() != 0:
        return "nodes as containers need root"
    if part.nodes and part.name != "image" and "image" in failed:
        return "the image part failed"
    return None


def run_parts(names: Sequence[str], arguments: tuple[str, ...]) -> int:
    """Run parts one after the other and print what came of each."""
    total = Count()
    rows: list[str] = []
    failed: list[str] = []
    started = time.monotonic()
    try:
        for name in names:
            part = PARTS[name]
            reason = why_not(part, failed)
            if reason:
                # Asked for by name, or in CI, it must not pass for done.
                must = len(names) == 1 or os.environ.get("CI") == "true" or "image" in failed
                total.add(Count(failed=1) if must else Count(skipped=1))
                failed += [name] if must else []
                rows.append(f"{'FAILED' if must else 'skipped':8} {name:12} {'':8} {reason}")
                say(f"=== {name}: {'FAILED' if must else 'skipped'}: {reason}")
                continue
            say(f"=== {name}: {part.text}")
            run, begin = Run(name, arguments), time.monotonic()
            try:
                part.run(run)
            except BaseException:
                run.count.failed += 1
                run.failures.append("interrupted")
                raise
            finally:
                took = time.monotonic() - begin
                good = not run.failures and not run.count.failed and run.count.passed
                failed += [] if good else [name]
                total.add(run.count)
                what = str(run.count) + (f"; {', '.join(run.failures)}" if run.failures else "")
                rows.append(f"{'passed' if good else 'FAILED':8} {name:12} {took:6.0f} s {what}")
            say(f"=== {name}: {'passed' if good else 'FAILED'} in {took:.0f} s: {what}")
    finally:
        say(f"\n{'':8} {'part':12} {'time':>8} checks")
        say("\n".join(rows))
        say(f"all parts: {time.monotonic() - started:.0f} s")
        say(str(total))
    return 1 if failed else 0


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="tools/test", description="Run the test-suite: all of it, cheapest first, or the parts named.")
    parser.add_argument("part", nargs="?", help="a part; without it, all that --list marks with *")
    parser.add_argument(
        "argument",
        nargs=argparse.REMAINDER,
        help="handed on to the part: role names to molecule, pytest's arguments to the others",
    )
    parser.add_argument("--list", action="store_true", help="name the parts")
    options = parser.parse_args()
    if options.list:
        for part in PARTS.values():
            say(f"{'*' if part.default else ' '} {part.name:12} {part.text}")
        return 0
    if options.part and options.part not in PARTS:
        refuse(f"no part {options.part!r}; there are: {', '.join(PARTS)}")
    os.chdir(ROOT)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    os.environ["PYTHONUNBUFFERED"] = "1"
    if not sys.stdout.isatty():
        os.environ["NO_COLOR"] = "1"
    # CI's time-out and a closed terminal end the run as Ctrl-C does: through every `finally`.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    names = [options.part] if options.part else [part.name for part in PARTS.values() if part.default]
    try:
        return run_parts(names, tuple(options.argument))
    except KeyboardInterrupt:
        say("test: interrupted")
        return 130


def _interrupt(number: int, _frame: object) -> NoReturn:
    # Once: a second signal must not cut the clean-up short.
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

"""`up` and `down`: the steps in their order, each of which finds what an earlier run has done."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from cloud import config, database, network, passwords, readiness, root, seed
from cloud.machine import Machine
from cloud.services import Supervisor, of_stages
from cloud.settings import Settings
from gridstead.cluster.command import run
from gridstead.cluster.errors import GridsteadError, InputError
from gridstead.cluster.paths import ROOT
from gridstead.cluster.progress import Progress

#: Programs of this machine, each of a package that tools/requirements.apt names.
_PROGRAMS = ("mmdebstrap", "ip", "iptables", "nsenter", "unshare", "setpriv")
_BASE = ("store", "identity", "api")


@contextmanager
def locked(settings: Settings, progress: Progress) -> Iterator[None]:
    """Held by one `up` or `down` of this cloud at a time; the next one waits."""
    path = settings.data / "lock"
    while True:
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings.data.chmod(0o700)
        with path.open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with progress.step("wait for", "another run of tests/cloud/cloud", silent=True):
                    fcntl.flock(stream, fcntl.LOCK_EX)
            # `down --purge` takes the file away with the rest; a lock on it then is no lock on the next one.
            if path.exists() and os.fstat(stream.fileno()).st_ino == path.stat().st_ino:
                yield
                return


def require_root() -> None:
    """Raise InputError for anybody else."""
    if os.geteuid() != 0:
        raise InputError("the test cloud needs root: it makes namespaces, mounts, interfaces", hint="run it as root, or with sudo")


def up(settings: Settings, zones: frozenset[str], progress: Progress) -> None:
    """Make the cloud be up, with at least these zones.

    Raises:
        GridsteadError: a step failed; run again, it goes on from there.
    """
    require_root()
    _require_programs(progress)
    with locked(settings, progress):
        secret = passwords.ensure(settings.data)
        machine = Machine(settings)
        tree = _start_machine(settings, machine, secret, progress)
        supervisor = Supervisor(machine, settings.logs)
        stages = (*_BASE, *sorted(zones))
        config.render(settings, tree, secret)
        supervisor.reload()
        supervisor.stop(supervisor.outdated(tree))
        _start_services(settings, machine, supervisor, secret, stages, progress)
        with progress.step("wait until", f"all is ready (zones {', '.join(sorted(zones))})"):
            _wait("the cloud", lambda: readiness.unready(settings, secret, zones), machine, supervisor, stages)
        text = "# Written by tests/cloud/cloud up. Holds passwords.\n" + yaml.safe_dump(seed.clouds(settings, secret), sort_keys=False)
        if not settings.clouds_yaml.exists() or settings.clouds_yaml.read_text() != text:
            passwords.write_private(settings.clouds_yaml, text)


def _require_programs(progress: Progress) -> None:
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        with progress.step("install", f"system packages ({', '.join(missing)} missing)"):
            run([str(ROOT / "tools" / "bootstrap.sh"), "system"], timeout=1800)


def _start_machine(settings: Settings, machine: Machine, secret: dict[str, str], progress: Progress) -> Path:
    """Start the machine unless it runs; returns the root file system that it runs from."""
    if machine.pid is not None and not (machine.is_usable and database.is_initialised(settings)):
        # A run was killed while it made the databases: they are worth nothing.
        machine.stop()
    tree = machine.started_from()
    if tree is None:
        network.check(settings)
        tree = root.ensure(settings, progress)
        with progress.step("start", "machine"):
            config.render(settings, tree, secret)  # supervisord's own configuration is among it
            database.prepare_state(settings, secret)
            machine.start(tree)
    elif tree.name != root.digest():
        progress.say("the cloud that is up has an earlier list of packages; down and up gives it this checkout's", style="yellow")
    network.ensure(settings, machine)
    return tree


def _start_services(
    settings: Settings, machine: Machine, supervisor: Supervisor, secret: dict[str, str], stages: tuple[str, ...], progress: Progress
) -> None:
    if not database.is_initialised(settings):
        database.initialise(settings, machine, supervisor, secret, progress)
    for stage in stages:
        services = of_stages(stage)
        with progress.step("start", f"stage {stage}", silent=True):
            supervisor.start(services, progress)
            _wait(f"stage {stage}", functools.partial(readiness.closed_ports, machine, services), machine, supervisor, (stage,))
        if stage == "identity":
            # A state that is older than this checkout may lack some; an initialised one lacks none and this is quick.
            seed.identity(settings, secret)
        if stage == "api":
            with progress.step("make", "flavors, networks, image", silent=True):
                seed.resources(settings, secret)


def _wait(what: str, missing: Callable[[], list[str]], machine: Machine, supervisor: Supervisor, stages: tuple[str, ...]) -> None:
    try:
        readiness.wait(what, missing)
    except GridsteadError as error:
        raise GridsteadError("\n".join([str(error), *readiness.failures(machine, supervisor, stages)])) from None


def down(settings: Settings, progress: Progress, *, purge: bool = False) -> None:
    """Take the cloud away with all that was made in it. The root file system and the initialised databases stay for the next `up`.

    Args:
        settings: of the cloud.
        progress: told what happens.
        purge: these too, and the passwords.
    """
    require_root()
    if not settings.data.exists():
        return
    with locked(settings, progress):
        with progress.step("stop", "machine", silent=True):
            Machine(settings).stop()
        network.remove(settings)
        with progress.step("remove", "state", silent=True):
            database.discard_state(settings)
            for path in (settings.clouds_yaml, settings.data / "machine.log"):
                path.unlink(missing_ok=True)
        if purge:
            with progress.step("remove", "caches and passwords", silent=True):
                root.purge(settings)
                subprocess.run(root.bound("rm", "-rf", "--one-file-system", str(settings.data)), check=True)

"""Running Ansible: its events become progress, its failures one short message, its output a log file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from gridstead.cluster.configuration import yaml
from gridstead.cluster.errors import GridsteadError
from gridstead.cluster.paths import ROOT, SitePaths
from gridstead.cluster.progress import Progress
from gridstead.cluster.secrets import private_directory

#: How many runs' logs are kept.
LOGS_KEPT = 50
#: A log's disk with less room than this, bytes, is what ended Ansible when it said nothing.
_LOG_ROOM = 64 * 2**10
#: How many lines of a failed task's message are shown; the log has them all.
MESSAGE_LINES = 12


class PlaybookError(GridsteadError):
    """Ansible failed: which task on which host, and what it said."""


@dataclass
class Recap:
    """What a run did.

    Args:
        hosts: host to its counters (ok, changed, failures, unreachable, …).
        changed: ``host: task`` of every change.
        seconds: how long it took.
        log: the file with all that Ansible said.
    """

    hosts: dict[str, dict[str, int]] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    log: Path = Path()


def strategy() -> str:
    """``mitogen_linear`` where the library is installed and the operator did not choose another, else ``linear``."""
    if chosen := os.environ.get("GRIDSTEAD_STRATEGY"):
        return chosen
    return "mitogen_linear" if find_spec("ansible_mitogen") else "linear"


def environment(paths: SitePaths, descriptors: tuple[int, int] | None = None) -> dict[str, str]:
    """The environment for Ansible's programs.

    Args:
        paths: the site.
        descriptors: the file descriptor to which the event callback writes and the one from which it reads that a play may begin, or
            None for no events.
    """
    settings = {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_RETRY_FILES_ENABLED": "0",
        # One process a node, up to what a controller can carry; most of their time is waiting.
        "ANSIBLE_FORKS": "20",
        "ANSIBLE_CACHE_PLUGIN": "jsonfile",
        "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(paths.facts),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(paths.state / "cp"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "tools"), os.environ.get("PYTHONPATH")])),
        "LC_ALL": "C.UTF-8",
    }
    chosen = strategy()
    settings["ANSIBLE_STRATEGY"] = chosen
    if chosen.startswith("mitogen") and (mitogen := find_spec("ansible_mitogen")) and mitogen.submodule_search_locations:
        settings["ANSIBLE_STRATEGY_PLUGINS"] = str(Path(mitogen.submodule_search_locations[0]) / "plugins" / "strategy")
    if descriptors is not None:
        events, gate = map(str, descriptors)
        settings |= {"ANSIBLE_CALLBACKS_ENABLED": "gridstead_events,gridstead_preload", "GRIDSTEAD_EVENTS": events, "GRIDSTEAD_GATE": gate}
    return {**os.environ, **settings}


def write(paths: SitePaths, plays: Sequence[Mapping[str, Any]], name: str = "site") -> Path:
    """Write plays as a playbook of the site's own, which finds the roles where those of the checkout do.

    Args:
        paths: the site.
        plays: the plays.
        name: the playbook's.

    Returns:
        The file.
    """
    directory = private_directory(paths.plays / "playbooks")
    roles = paths.plays / "roles"
    if not roles.is_symlink() or roles.readlink() != ROOT / "roles":
        roles.unlink(missing_ok=True)
        roles.symlink_to(ROOT / "roles")
    file = directory / f"{name}.yml"
    yaml().dump([dict(play) for play in plays], file)
    return file


def play(
    playbooks: Sequence[str | Path],
    paths: SitePaths,
    progress: Progress,
    *,
    what: str,
    limit: Sequence[str] = (),
    variables: Mapping[str, Any] | None = None,
    settings: Mapping[str, str] | None = None,
) -> Recap:
    """Run playbooks on a site.

    Args:
        playbooks: files, or their names under playbooks/, in order.
        paths: the site.
        progress: told of every task.
        what: the run's name, for progress and the log file.
        limit: hosts or groups to keep to.
        variables: extra variables; no secrets, they are on the command line.
        settings: more of Ansible's environment.

    Returns:
        What was changed where.

    Raises:
        PlaybookError: a task failed or a host could not be reached.
    """
    return Run(playbooks, paths, progress, what, limit=limit, variables=variables, settings=settings)()


@dataclass
class Run:
    """One run of Ansible.

    Args:
        playbooks, paths, progress, what, limit, variables, settings: as of :func:`play`.
        skip: tags to leave out.
        at_play: asked at the start of each play, with its name, when it may begin; a run that may not go on ends there.
        log: the file with all that Ansible says.
        recap: what it has done so far.
    """

    playbooks: Sequence[str | Path]
    paths: SitePaths
    progress: Progress
    what: str
    limit: Sequence[str] = ()
    skip: Sequence[str] = ()
    variables: Mapping[str, Any] | None = None
    settings: Mapping[str, str] | None = None
    at_play: Callable[[str], bool] | None = None
    log: Path = field(init=False)
    recap: Recap = field(init=False)
    _process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.log = self.paths.logs / f"{time.strftime('%Y%m%d-%H%M%S')}-{self.what.replace(' ', '-')}.log"
        self.recap = Recap(log=self.log)

    def _argv(self) -> list[str]:
        argv = [str(Path(sys.executable).parent / "ansible-playbook"), "--inventory", str(self.paths.spec)]
        argv += [str(ROOT / "playbooks" / name) for name in self.playbooks]
        if self.limit:
            argv += ["--limit", ",".join(self.limit)]
        if self.skip:
            argv += ["--skip-tags", ",".join(self.skip)]
        if self.variables:
            argv += ["--extra-vars", json.dumps(dict(self.variables))]
        return argv

    def __call__(self) -> Recap:
        """Run it to its end; returns and raises as :func:`play`."""
        _forget_old(self.paths)
        began = time.monotonic()
        reading, writing = os.pipe()
        wait, go = os.pipe()
        with self.log.open("w") as output, os.fdopen(reading) as events, os.fdopen(go, "wb", buffering=0) as gate:
            self.log.chmod(0o600)
            try:
                self._process = subprocess.Popen(
                    self._argv(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**environment(self.paths, (writing, wait)), **(self.settings or {})},
                    pass_fds=[writing, wait],
                    cwd=ROOT,
                )
            finally:
                os.close(writing)
                os.close(wait)
            try:
                self._follow(events, gate)
                status = self._process.wait()
            except BaseException:
                self.end()
                raise
        self.recap.seconds = time.monotonic() - began
        if status:
            raise PlaybookError(_message(self.recap, self.log, self.what), hint=f"the whole log: {self.log}")
        return self.recap

    def end(self) -> None:
        """End it before its time, and wait until it has."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def _follow(self, events: Iterable[str], gate: BinaryIO) -> None:
        token = self.progress.start(self.what, "starting Ansible")
        try:
            for line in events:
                event = json.loads(line)
                if event["event"] == "task":
                    self.progress.end(token)
                    token = self.progress.start(self.what, event["task"])
                elif event["event"] == "play":
                    if self.at_play is not None and not self.at_play(event["play"]):
                        gate.close()
                        continue
                    with suppress(BrokenPipeError):  # it has ended meanwhile
                        gate.write(b"\n")
                else:
                    _take(event, self.recap, self.progress)
        finally:
            self.progress.end(token)


def _forget_old(paths: SitePaths) -> None:
    """Remove the oldest logs: names begin with the time, and with the one that is to come LOGS_KEPT stay."""
    for old in sorted(paths.logs.glob("*.log"))[: -(LOGS_KEPT - 1)]:
        old.unlink(missing_ok=True)


def _take(event: dict[str, Any], recap: Recap, progress: Progress) -> None:
    match event["event"]:
        case "failed" | "unreachable":
            text = f"{event['host']}: {event['task']}: {_shorten(event['message'])}"
            recap.failures.append(text)
            progress.say(f"✗ {event['host']}: {event['task']}", style="red")
        case "changed":
            recap.changed.append(f"{event['host']}: {event['task']}")
            if progress.verbose:
                progress.say(f"  {event['host']}: {event['task']} ({event['seconds']:.1f} s)")
        case "ok":
            if progress.verbose:
                progress.say(f"  {event['host']}: {event['task']} (no change, {event['seconds']:.1f} s)", style="dim")
        case "stats":
            recap.hosts = event["hosts"]


def _shorten(message: str) -> str:
    lines = message.strip().splitlines() or ["no message"]
    if len(lines) > MESSAGE_LINES:
        lines = [*lines[:2], "…", *lines[-(MESSAGE_LINES - 3) :]]
    return "\n    ".join(lines)


def _message(recap: Recap, log: Path, what: str) -> str:
    if recap.failures:
        return "\n".join(recap.failures)
    if shutil.disk_usage(log.parent).free < _LOG_ROOM:
        return f"{what}: no space left on the disk of {log.parent}, where Ansible's log goes"
    # Ansible stopped before its first task (a syntax error, say): its own last words.
    return f"{what}: {_shorten(log.read_text(errors='replace'))}"

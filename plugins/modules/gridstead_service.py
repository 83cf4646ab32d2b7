#!/usr/bin/python
"""Ansible module: services run, on the settings that are on disk now. What they started with is noted at every start, so no run can lose a restart."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: gridstead_service
short_description: Run services on the settings that are on disk now
description:
  - Starts services and enables them, and restarts or reloads those whose files are not the ones that the running instance began with.
  - A drop-in has systemd write down the digests of these files whenever the service starts, whoever starts it. Ansible's handlers know only what
    this run has changed; a run that was killed or failed between a file and its handler leaves a service on old settings for good. Here the next
    run finds the difference.
  - A file that the record does not name, as on a node where the drop-in was not there yet when the service started, is judged by its age.
    What was last changed before the service began to start is what it started with.
  - When a unit or a drop-in of it is newer than what systemd has loaded, systemd loads it first.
options:
  units:
    description: Units, in the order in which they are seen to.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: "Name of the unit; a service's C(.service) may be left out.", type: str, required: true}
      enabled: {description: Also start it at boot., type: bool, default: true}
      restart_on: {description: Files that it reads only when it starts. Services only., type: list, elements: path, default: []}
      reload_on: {description: Files that it reads again on a reload. Services only., type: list, elements: path, default: []}
      reload_command: {description: "Makes it read them again; C(systemctl reload) when empty.", type: list, elements: str, default: []}
author: Gridstead
"""

EXAMPLES = r"""
- name: Run slurmctld on the present configuration
  gridstead_service:
    units:
      - name: slurmctld
        reload_on: [/etc/slurm/slurm.conf]
        reload_command: [scontrol, reconfigure]
"""

RETURN = r"""
actions:
  description: What was done (in check mode, what would be done) and why, one line each.
  type: list
  elements: str
  returned: always
"""

#: One file a running service: the id of its invocation, then a line for each file, as sha256sum prints it. Root's only: a key's digest is a hint.
RECORDS = Path("/run/gridstead/services")
UNITS = Path("/etc/systemd/system")
DROPIN = "gridstead-started.conf"
#: What stands in a line of systemd, in a shell's word and in sha256sum's output as it is.
PLAIN = re.compile(r"/[A-Za-z0-9_@.,:+/-]+")
PROPERTIES = "LoadState,ActiveState,SubState,UnitFileState,NeedDaemonReload,InvocationID,InactiveExitTimestamp"
ENABLED = ("enabled", "static", "generated", "alias")
UP = ("active", "reloading", "refreshing")


class ServiceError(Exception):
    """One clear line for the operator, and what the unit said."""


class Unit(NamedTuple):
    """A unit as it should be."""

    name: str
    enabled: bool
    restart_on: tuple[str, ...]
    reload_on: tuple[str, ...]
    reload_command: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """All files that it reads, each once."""
        return tuple(dict.fromkeys((*self.restart_on, *self.reload_on)))


class Systemctl:
    """The system manager, through its own command."""

    def __init__(self) -> None:
        self.path = "/usr/bin/systemctl" if Path("/usr/bin/systemctl").exists() else "/bin/systemctl"

    def __call__(self, *arguments: str, check: bool = True) -> str:
        """Run it; returns what it prints.

        Raises:
            ServiceError: it fails, and should not.
        """
        environment = {**os.environ, "LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""}
        done = subprocess.run(
            [self.path, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environment
        )
        if check and done.returncode:
            raise ServiceError(f"systemctl {' '.join(arguments)}: {done.stderr.strip() or f'exit {done.returncode}'}")
        return done.stdout

    def show(self, names: list[str]) -> dict[str, dict[str, str]]:
        """The properties of units, by name."""
        text = self("show", "--timestamp=us+utc", "--property=" + PROPERTIES, "--", *names)
        blocks = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in text.strip().split("\n\n")]
        return dict(zip(names, blocks))  # noqa: B905 - strict= needs Python 3.10


def full_name(name: str) -> str:
    """A unit's whole name.

    >>> full_name("slurmd"), full_name("cvmfs-stratum0@sw.grid.test.timer"), full_name("gridstead-cvmfs@sw.grid.test.service")
    ('slurmd.service', 'cvmfs-stratum0@sw.grid.test.timer', 'gridstead-cvmfs@sw.grid.test.service')
    """
    return name if name.endswith((".service", ".timer", ".path", ".socket", ".target", ".mount")) else name + ".service"


def dropin(unit: Unit) -> str:
    """The drop-in that notes what a service starts with. The record goes when the service stops, so that there is none of a service that does not run."""
    return (
        "# Placed by Gridstead's Ansible module gridstead_service: what the service starts with, so that a change after that is found.\n"
        "[Service]\n"
        f"ExecStartPre=+-/bin/sh -c 'umask 077; mkdir -p {RECORDS};"
        f' {{ echo "$$INVOCATION_ID"; sha256sum -- {" ".join(unit.files)} 2>/dev/null; }} >{RECORDS}/%n; :\'\n'
        f"ExecStopPost=+-/bin/rm -f {RECORDS}/%n\n"
    )


def digests(files: tuple[str, ...]) -> dict[str, str]:
    """The digest of each file that is there."""
    found = {}
    for file in files:
        try:
            found[file] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        except FileNotFoundError:
            continue
    return found


def parse_record(text: str) -> tuple[str, dict[str, str]]:
    r"""The invocation and the digests of a record; of a line that was cut off, nothing.

    >>> parse_record("0c4f\n" + 64 * "a" + "  /etc/slurm/slurm.conf\nbbb")
    ('0c4f', {'/etc/slurm/slurm.conf': 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'})
    >>> parse_record("")
    ('', {})
    """
    invocation, _, rest = text.partition("\n")
    return invocation, {line[66:]: line[:64] for line in rest.split("\n")[:-1] if line[64:66] == "  "}


def seconds(timestamp: str) -> float:
    """A time of systemd's as seconds since 1970; 0 when it is none.

    >>> seconds("Thu 2026-11-26 04:42:46.250000 UTC")
    1795668166.25
    >>> seconds("")
    0.0
    """
    if not timestamp:
        return 0.0
    _, date, time, _ = timestamp.split()
    return datetime.strptime(f"{date} {time}", "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=timezone.utc).timestamp()  # noqa: UP017 - needs Python 3.11


def changed_since(file: str, moment: float) -> bool:
    """Whether a file was made or changed after a moment (seconds since 1970). Of one that is gone nobody can say: it was not."""
    try:
        return os.stat(file).st_ctime > moment  # noqa: PTH116 - one word with st_ctime
    except FileNotFoundError:
        return False


def differing(files: tuple[str, ...], noted: dict[str, str] | None, now: dict[str, str], began: float) -> list[str]:
    """Files that are not what an instance started with.

    Args:
        files: the files it reads.
        noted: the record of this instance: its digests; None when it left none.
        now: the files' digests now.
        began: when the instance began to start, seconds since 1970.

    >>> differing(("/a", "/b", "/c"), {"/a": "1", "/b": "2"}, {"/a": "1", "/b": "3"}, 0.0)
    ['/b']
    >>> differing(("/a",), {"/a": "1"}, {}, 0.0)
    ['/a']
    """
    record = noted or {}
    return [file for file in files if (record[file] != now.get(file) if file in record else changed_since(file, began))]


class Keeper:
    """Sees to units."""

    def __init__(self, units: list[Unit], systemctl: Systemctl, *, pretend: bool) -> None:
        self.units = units
        self.systemctl = systemctl
        self.pretend = pretend
        self.actions: list[str] = []
        self.moved = False

    def run(self) -> None:
        """See to all units, in order.

        Raises:
            ServiceError: a unit is missing, or does not start or reload.
        """
        placed = [self._place(unit) for unit in self.units]
        names = [unit.name for unit in self.units]
        seen = self.systemctl.show(names)
        if any(placed) or any(state["NeedDaemonReload"] == "yes" for state in seen.values()):
            self.actions.append("systemd: units loaded again")
            if not self.pretend:
                self.systemctl("daemon-reload")
                seen = self.systemctl.show(names)
        if not self.pretend:
            for name in names:
                if seen[name]["LoadState"] in ("not-found", "masked", "bad-setting", "error"):
                    raise ServiceError(f"unit {name} cannot run: systemd says {seen[name]['LoadState']}")
        self._enable([unit.name for unit in self.units if unit.enabled and seen[unit.name]["UnitFileState"] not in ENABLED])
        for unit in self.units:
            if self.moved:
                # What was started or restarted may have taken this one with it.
                seen = self.systemctl.show(names)
                self.moved = False
            self._see_to(unit, seen[unit.name])

    def _enable(self, names: list[str]) -> None:
        """Have units started at boot, all by one call: systemd loads all units again after each."""
        self.actions += [f"{name}: enabled" for name in names]
        if names and not self.pretend:
            self.systemctl("enable", *names)

    def _place(self, unit: Unit) -> bool:
        """Put the drop-in in place; True when it was another one."""
        path = UNITS / f"{unit.name}.d" / DROPIN
        wanted = dropin(unit) if unit.files else None
        present = path.read_text() if path.exists() else None
        if present == wanted:
            return False
        if not self.pretend:
            if wanted is None:
                path.unlink()
            else:
                path.parent.mkdir(mode=0o755, exist_ok=True)
                scratch = path.with_suffix(".new")
                scratch.write_text(wanted)
                scratch.chmod(0o644)
                scratch.replace(path)
        self.actions.append(f"{unit.name}: will note what it starts with" if wanted else f"{unit.name}: notes nothing any more")
        return True

    def _see_to(self, unit: Unit, state: dict[str, str]) -> None:
        if state["ActiveState"] not in UP:
            self.actions.append(f"{unit.name}: started")
            if self.pretend:
                return
            # One that is just being started by somebody else may have read the files before they changed: looked at below.
            state = self._start(unit, "start")
        if unit.files:
            self._bring_up_to_date(unit, state)

    def _bring_up_to_date(self, unit: Unit, state: dict[str, str]) -> None:
        """Restart or reload a service that runs, if its files are not the ones it started with."""
        now, noted = digests(unit.files), self._noted(unit, state)
        began = seconds(state["InactiveExitTimestamp"])
        if different := differing(unit.restart_on, noted, now, began):
            self.actions.append(f"{unit.name}: restarted, as it ran with another {', '.join(different)}")
            if not self.pretend:
                state = self._start(unit, "restart")
                if self._noted(unit, state) is None:
                    self._note(unit, state, now)
        elif different := differing(unit.reload_on, noted, now, began):
            self.actions.append(f"{unit.name}: reloaded, as it ran with another {', '.join(different)}")
            if not self.pretend:
                self._reload(unit)
                # What was there before the reload: if it has changed since, the next run reloads once more.
                self._note(unit, state, now)
        elif noted != now and not self.pretend:
            self._note(unit, state, now)

    def _noted(self, unit: Unit, state: dict[str, str]) -> dict[str, str] | None:
        """The record of the instance that runs; None when there is none of it."""
        try:
            invocation, noted = parse_record((RECORDS / unit.name).read_text())
        except FileNotFoundError:
            return None
        return noted if invocation == state["InvocationID"] else None

    def _note(self, unit: Unit, state: dict[str, str], now: dict[str, str]) -> None:
        """Write the record of the instance that runs."""
        RECORDS.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch = RECORDS / f".{unit.name}"
        scratch.write_text("".join([state["InvocationID"] + "\n", *(f"{digest}  {file}\n" for file, digest in now.items())]))
        scratch.chmod(0o600)
        scratch.replace(RECORDS / unit.name)

    def _start(self, unit: Unit, verb: str) -> dict[str, str]:
        """Start or restart a unit, and see that it stays; returns its properties.

        Raises:
            ServiceError: it did not start; with the last it said.
        """
        try:
            self.systemctl("reset-failed", unit.name, check=False)
            self.moved = True
            self.systemctl(verb, unit.name)
            state = self.systemctl.show([unit.name])[unit.name]
        except ServiceError as error:
            raise ServiceError(f"{error}\n{self._said(unit)}") from None
        if state["ActiveState"] in ("inactive", "failed"):
            raise ServiceError(f"{unit.name} did not stay up ({state['ActiveState']}, {state['SubState']}):\n{self._said(unit)}")
        return state

    def _reload(self, unit: Unit) -> None:
        if not unit.reload_command:
            self.systemctl("reload", unit.name)
            return
        done = subprocess.run(unit.reload_command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip() or f"exit {done.returncode}"
            raise ServiceError(f"{unit.name}: {' '.join(unit.reload_command)}: {said}")

    def _said(self, unit: Unit) -> str:
        return self.systemctl("status", "--no-pager", "--lines=10", "--full", unit.name, check=False).strip()


def to_unit(values: dict[str, Any]) -> Unit:
    """A unit from the module's parameters.

    Raises:
        ServiceError: it cannot be as declared.
    """
    unit = Unit(
        full_name(values["name"]),
        values["enabled"],
        *(tuple(values[key] or ()) for key in ("restart_on", "reload_on", "reload_command")),
    )
    if unit.files and not unit.name.endswith(".service"):
        raise ServiceError(f"{unit.name} is no service: restart_on and reload_on are for services")
    if strange := [file for file in unit.files if not PLAIN.fullmatch(file)]:
        raise ServiceError(f"{unit.name}: {', '.join(strange)}: an absolute path of letters, digits and _ @ . , : + / - is right")
    return unit


def main() -> None:
    """Run the module."""
    suboptions = {
        "name": {"type": "str", "required": True},
        "enabled": {"type": "bool", "default": True},
        "restart_on": {"type": "list", "elements": "path", "default": []},
        "reload_on": {"type": "list", "elements": "path", "default": []},
        "reload_command": {"type": "list", "elements": "str", "default": []},
    }
    module = AnsibleModule(
        argument_spec={"units": {"type": "list", "elements": "dict", "required": True, "options": suboptions}},
        supports_check_mode=True,
    )
    actions: list[str] = []
    try:
        keeper = Keeper([to_unit(values) for values in module.params["units"]], Systemctl(), pretend=module.check_mode)
        actions = keeper.actions
        keeper.run()
    except (ServiceError, OSError) as error:
        module.fail_json(msg=str(error), actions=actions, changed=bool(actions))
    module.exit_json(changed=bool(actions), actions=actions)


if __name__ == "__main__":
    main()

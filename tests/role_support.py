"""Roles run once more in a scenario's tests, whole or cut off; and which services were started anew by that."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from support import ROOT

if TYPE_CHECKING:
    from testinfra.host import Host

#: In place of the module that restarts services: a run ends there, as one that is killed or fails between a file and the restart.
_CUT = "#!/usr/bin/python3\nimport json\nprint(json.dumps({'failed': True, 'msg': 'cut off here'}))\n"


def run_role(host: Host, role: str, variables: dict[str, Any] | None = None, *, cut_off: bool = False, fails_with: str = "") -> str:
    """Run a role on a host.

    Args:
        host: a host of the scenario.
        role: the role.
        variables: of the run, over those of the inventory.
        cut_off: end where the role would have a service use what was written.
        fails_with: the role is to fail, saying this.

    Returns:
        What Ansible printed. Fails when the role does, or when it does not and should.
    """
    with tempfile.TemporaryDirectory(prefix="gridstead-role-") as scratch:
        play = Path(scratch) / "play.yml"
        play.write_text(json.dumps([{"hosts": host.backend.host, "roles": [role]}]))
        if cut_off:
            plugins = Path(scratch) / "ansible_collections" / "gridstead" / "site" / "plugins"
            shutil.copytree(ROOT / "plugins", plugins)
            (plugins / "modules" / "gridstead_service.py").write_text(_CUT)
        done = ansible(host, "ansible-playbook", "--extra-vars", json.dumps(variables or {}), str(play), collections=scratch)
    output = done.stdout + done.stderr
    wanted = "cut off here" if cut_off else fails_with
    assert (done.returncode != 0) == bool(wanted), output
    assert wanted in " ".join(output.split()), output
    return output


def play_variables(test: str, play: str) -> dict[str, Any]:
    """The variables of a play of the converge.yml of a scenario.

    Args:
        test: a test file of the scenario.
        play: the play's name.
    """
    plays = yaml.safe_load((Path(test).parents[1] / "converge.yml").read_text())
    found: dict[str, Any] = next(it for it in plays if it["name"] == play)["vars"]
    return found


def run_module(host: Host, module: str, **parameters: Any) -> dict[str, Any]:
    """Run a module of the kit on a host; returns its result, with ``failed``."""
    words = ["ansible", host.backend.host, "--one-line", "--module-name", f"gridstead.site.{module}", "--args", json.dumps(parameters)]
    status, _, result = ansible(host, *words).stdout.partition("=> ")
    return {**json.loads(result), "failed": "FAILED" in status}


def ansible(host: Host, *argv: str, collections: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program of Ansible with the scenario's inventory and the checkout's roles and plugins, those of `collections` before them."""
    return subprocess.run(
        [*argv, "--inventory", _inventory(host.backend.ansible_runner).name],
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
            "ANSIBLE_INVENTORY_ENABLED": "yaml",
            "ANSIBLE_COLLECTIONS_PATH": ":".join(filter(None, [collections, str(ROOT / "collections")])),
        },
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@functools.cache
def _inventory(runner: Any) -> Any:
    """A file with the scenario's inventory, as the plugin told it when the tests began: to ask it takes longer than many a role."""
    told = _plain(runner.inventory)
    groups = {name: {"hosts": dict.fromkeys(group.get("hosts", []))} for name, group in told.items() if name not in ("_meta", "all")}
    file = tempfile.NamedTemporaryFile("w", prefix="gridstead-hosts-", suffix=".json")  # noqa: SIM115 - it is gone with the process
    file.write(json.dumps({"all": {"hosts": told["_meta"]["hostvars"], "children": groups}}))
    file.flush()
    return file


def _plain(value: Any) -> Any:
    """Without the marks of strings that come from an inventory plugin, {"__ansible_unsafe": "text"}."""
    if isinstance(value, dict):
        return value["__ansible_unsafe"] if "__ansible_unsafe" in value else {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def instances(host: Host, *units: str) -> dict[str, str]:
    """Which instance of each service runs: systemd's invocation id, another one after every start."""
    found = {unit: str(host.check_output("systemctl show --property=InvocationID --value %s", unit)) for unit in units}
    assert all(found.values()), found
    return found


def started_anew(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """The services that another instance of runs now."""
    return {unit for unit in before if before[unit] != after[unit]}

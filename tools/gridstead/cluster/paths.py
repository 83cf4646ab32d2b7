"""Where things lie: one place that knows every path."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

#: The checkout (or the installed copy) that holds roles/, playbooks/ and inventories/.
ROOT = Path(__file__).resolve().parents[3]


def state_home() -> Path:
    """The directory of all clusters' state: $GRIDSTEAD_STATE, else below the XDG state directory."""
    if given := os.environ.get("GRIDSTEAD_STATE"):
        return Path(given).absolute()
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "gridstead"


def site_argument(declaration: Path) -> str:
    """What ``--site`` has to be for a cluster.yml: the shortest that works from anywhere, empty for the default site.

    Args:
        declaration: the file.
    """
    if declaration.name != "cluster.yml":
        return str(declaration)
    directory = declaration.parent
    name = directory.name if directory.parent == ROOT / "inventories" else str(directory)
    return "" if name == "local" else name


@dataclass(frozen=True)
class SitePaths:
    """The paths of one site.

    Args:
        spec: its cluster.yml.
        name: the cluster's name.
    """

    spec: Path
    name: str

    @property
    def option(self) -> str:
        """What names this site on the command line; nothing for the default one."""
        argument = site_argument(self.spec)
        return f" --site {shlex.quote(argument)}" if argument else ""

    @property
    def state(self) -> Path:
        """The cluster's secrets, known_hosts and logs (0700); may be deleted at any time."""
        return state_home() / self.name

    @property
    def secrets(self) -> Path:
        """Keys minted once per cluster."""
        return self.state / "secrets"

    @property
    def ssh_key(self) -> Path:
        """The private key that opens every node of the cluster."""
        return self.secrets / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The host keys of the cluster's nodes."""
        return self.state / "known_hosts"

    @property
    def ssh_config(self) -> Path:
        """The file for ``ssh -F`` that knows every node by name."""
        return self.state / "ssh_config"

    @property
    def logs(self) -> Path:
        """What Ansible said, a file a run."""
        return self.state / "logs"

    @property
    def facts(self) -> Path:
        """Ansible's fact cache."""
        return self.state / "facts"

    @property
    def plays(self) -> Path:
        """The plays of the last run of Ansible that had something to do, each with the nodes where it had."""
        return self.state / "plays"

    @property
    def checked(self) -> Path:
        """There since the site was last checked by using it; gone as soon as something is done to it."""
        return self.state / "checked"

    @property
    def owner(self) -> Path:
        """The id of this state directory, by which a cluster's marks say whose it is."""
        return self.state / "owner"

    @property
    def drained(self) -> Path:
        """The nodes that were drained to be repaired or made anew, a line each."""
        return self.state / "drained"

    @property
    def lock(self) -> Path:
        """Held by the command that is changing the cluster, where the cluster's data do not lie on this machine."""
        return self.state / "lock"

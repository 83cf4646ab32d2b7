"""The databases: made and migrated once, then kept as a template that every new cloud starts from."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cloud import root as roots
from cloud import seed
from cloud.machine import Machine
from cloud.services import Supervisor, of_stages
from cloud.settings import REGION, Settings
from gridstead.cluster.command import CommandError
from gridstead.cluster.errors import GridsteadError
from gridstead.cluster.progress import Progress

#: Schema by the database user that owns it.
_SCHEMAS = {
    "keystone": ["keystone"],
    "glance": ["glance"],
    "placement": ["placement"],
    "nova": ["nova", "nova_api", "nova_cell0"],
    "neutron": ["neutron"],
    "cinder": ["cinder"],
}
#: The directories of the state that initialising fills.
_KEPT = ("mysql", "keystone")
_STAMP = "initialised"


def key(settings: Settings, passwords: dict[str, str]) -> str:
    """Identifies what a template holds: the programs that migrated it, the addresses and passwords in it."""
    content = json.dumps([roots.digest(), str(settings.address), passwords], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def is_initialised(settings: Settings) -> bool:
    """Whether the state's databases are complete."""
    return (settings.state / _STAMP).exists()


def prepare_state(settings: Settings, passwords: dict[str, str]) -> None:
    """Make the state directory for a machine that is about to start: as it was, else from the template, else empty."""
    wanted = key(settings, passwords)
    stamp = settings.state / _STAMP
    if stamp.exists() and stamp.read_text() == wanted:
        return
    discard_state(settings)
    partial = settings.data / "state.new"
    subprocess.run(roots.bound("rm", "-rf", str(partial)), check=True)
    partial.mkdir(mode=0o700)
    template = settings.template / _STAMP
    if template.exists() and template.read_text() == wanted:
        _copy(f"{settings.template}/.", partial)
    partial.rename(settings.state)


def discard_state(settings: Settings) -> None:
    """Remove all that the cloud has written. The stamp goes first: what is left of a killed removal counts as nothing."""
    (settings.state / _STAMP).unlink(missing_ok=True)
    subprocess.run(roots.bound("rm", "-rf", "--one-file-system", str(settings.state)), check=True)


def initialise(settings: Settings, machine: Machine, supervisor: Supervisor, passwords: dict[str, str], progress: Progress) -> None:
    """Make the databases, migrate them, make users and catalog, and keep all that as the template.

    Raises:
        GridsteadError: a migration failed, with the end of what it said.
    """
    with progress.step("make databases", "MariaDB"):
        supervisor.start(of_stages("store"), progress)
        wait_for_database(machine)
        machine.inside(["mariadb"], stdin=_schema_sql(passwords))
    began = time.monotonic()
    # Two chains side by side, one per core; each in the order that its programs need.
    with ThreadPoolExecutor(2) as pool:
        chains = [pool.submit(_keystone_placement_glance_cinder, settings, machine, passwords, progress)]
        chains.append(pool.submit(_nova_neutron, machine, progress))
        for chain in chains:
            chain.result()
    progress.say(f"databases migrated ({time.monotonic() - began:.0f} s)")
    with progress.step("make", "users and catalog"):
        supervisor.start(of_stages("identity"), progress)
        seed.identity(settings, passwords)
    with progress.step("keep", "initialised databases"):
        # At rest while they are copied.
        supervisor.stop(["keystone", "mariadb"])
        _keep(settings, key(settings, passwords))
        supervisor.start(of_stages("store", "identity"), progress)
        wait_for_database(machine)


def wait_for_database(machine: Machine, seconds: float = 60) -> None:
    """Return once MariaDB answers.

    Raises:
        GridsteadError: it does not.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            machine.inside(["mariadb-admin", "ping"], timeout=20)
        except CommandError as error:
            if time.monotonic() > deadline:
                raise GridsteadError(f"MariaDB does not answer: {error.stderr}") from None
            time.sleep(0.3)
        else:
            return


def _schema_sql(passwords: dict[str, str]) -> str:
    statements = []
    for user, schemas in _SCHEMAS.items():
        statements.append(f"CREATE USER IF NOT EXISTS {user}@'127.0.0.1' IDENTIFIED BY '{passwords[f'database_{user}']}';")
        for schema in schemas:
            statements.append(f"CREATE DATABASE IF NOT EXISTS {schema} CHARACTER SET utf8mb3;")
            statements.append(f"GRANT ALL ON {schema}.* TO {user}@'127.0.0.1';")
    return "\n".join(statements) + "\n"


def _manage(machine: Machine, progress: Progress, argv: Sequence[str], environment: dict[str, str] | None = None) -> None:
    with progress.step("run", " ".join(argv[:4])):
        machine.inside(argv, timeout=900, environment=environment)


def _keystone_placement_glance_cinder(settings: Settings, machine: Machine, passwords: dict[str, str], progress: Progress) -> None:
    _manage(machine, progress, ["keystone-manage", "db_sync"])
    for keys in ("fernet", "credential"):
        machine.inside(["install", "-d", "-m", "700", f"/var/lib/keystone/{keys}-keys"])
        _manage(machine, progress, ["keystone-manage", f"{keys}_setup", "--keystone-user", "root", "--keystone-group", "root"])
    urls = [word for kind in ("admin", "internal", "public") for word in (f"--bootstrap-{kind}-url", f"{settings.auth_url}/")]
    bootstrap = ["keystone-manage", "bootstrap", "--bootstrap-region-id", REGION, *urls]
    _manage(machine, progress, bootstrap, {"OS_BOOTSTRAP_PASSWORD": passwords["admin"]})
    _manage(machine, progress, ["placement-manage", "db", "sync"])
    _manage(machine, progress, ["glance-manage", "db_sync"])
    _manage(machine, progress, ["cinder-manage", "db", "sync"])


def _nova_neutron(machine: Machine, progress: Progress) -> None:
    _manage(machine, progress, ["nova-manage", "api_db", "sync"])
    _manage(machine, progress, ["nova-manage", "cell_v2", "map_cell0"])
    _manage(machine, progress, ["nova-manage", "db", "sync"])
    _manage(machine, progress, ["nova-manage", "cell_v2", "create_cell", "--name=cell1"])
    neutron = ["--config-file", "/etc/neutron/neutron.conf", "--config-file", "/etc/neutron/plugins/ml2/ml2_conf.ini"]
    _manage(machine, progress, ["neutron-db-manage", *neutron, "upgrade", "heads"])


def _keep(settings: Settings, wanted: str) -> None:
    partial = settings.data / "template.new"
    subprocess.run(roots.bound("rm", "-rf", str(partial), str(settings.template)), check=True)
    partial.mkdir(mode=0o700)
    for name in _KEPT:
        _copy(settings.state / name, partial / name)
    (partial / _STAMP).write_text(wanted)
    partial.rename(settings.template)
    (settings.state / _STAMP).write_text(wanted)


def _copy(source: Path | str, target: Path) -> None:
    subprocess.run(roots.bound("cp", "--archive", "--reflink=auto", str(source), str(target)), check=True)

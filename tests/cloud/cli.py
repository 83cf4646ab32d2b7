"""The command, ``tests/cloud/cloud``."""

from __future__ import annotations

import json
import logging
import sys
from typing import Annotated, Any

import typer

from cloud import life, readiness
from cloud.machine import Machine
from cloud.passwords import ensure as read_passwords
from cloud.services import SERVICES, Supervisor
from cloud.settings import ZONES, Settings
from gridstead.cluster.errors import GridsteadError, InputError
from gridstead.cluster.host import Host
from gridstead.cluster.progress import Progress, error_console

app = typer.Typer(
    name="cloud",
    help="A real OpenStack on this machine: Keystone, Glance, Placement, Nova, Neutron, Cinder.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.")]


def _zones(text: str) -> frozenset[str]:
    named = frozenset(word.strip() for word in text.split(",") if word.strip())
    if not named or not named <= set(ZONES):
        raise InputError(f"--zones {text}: no such zone", hint=f"right would be a list of {' and '.join(ZONES)}, such as {','.join(ZONES)}")
    return named


@app.command()
def up(
    zones: Annotated[str, typer.Option("--zones", help="Zones that must be up; one that is up already stays.")] = ",".join(ZONES),
    quiet: QuietOption = False,
) -> None:
    """Bring the cloud up, or complete it. Run it again at any time."""
    settings = Settings.from_environment()
    wanted = _zones(zones)
    with Progress(quiet=quiet) as progress:
        life.up(settings, wanted, progress)
        progress.say(f"the cloud is up: {settings.auth_url}")
    typer.echo(_exports(settings))


@app.command()
def down(
    purge: Annotated[bool, typer.Option("--purge", help="Also the cached root file system and databases.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Take the cloud away, with all that was made in it."""
    with Progress(quiet=quiet) as progress:
        life.down(Settings.from_environment(), progress, purge=purge)
        progress.say("the cloud is gone")


@app.command()
def status(as_json: Annotated[bool, typer.Option("--json", help="As JSON on standard output.")] = False) -> None:
    """Services and zones. Exit code 1 when the cloud is not wholly up."""
    life.require_root()
    settings = Settings.from_environment()
    machine = Machine(settings)
    seen: dict[str, Any] = {"up": machine.pid is not None, "data": str(settings.data), "auth_url": settings.auth_url}
    seen |= {"floating": str(settings.floating), "dns": str(settings.host_address), "zones": [], "missing": [], "services": {}}
    if machine.pid is not None:
        states = Supervisor(machine, settings.logs).states()
        seen["services"] = {
            service.name: {
                "state": states[service.name]["statename"].lower(),
                "seconds": states[service.name]["now"] - states[service.name]["start"] if states[service.name]["pid"] else 0,
                "stage": service.stage,
            }
            for service in SERVICES
        }
        zones = {zone for zone in ZONES if any(entry["stage"] == zone and entry["seconds"] for entry in seen["services"].values())}
        seen["zones"] = sorted(zones)
        seen["missing"] = readiness.unready(settings, read_passwords(settings.data), frozenset(zones))
    if as_json:
        typer.echo(json.dumps(seen, indent=2))
    else:
        _print_status(seen)
    if not seen["up"] or seen["missing"]:
        raise typer.Exit(1)


def _print_status(seen: dict[str, Any]) -> None:
    if not seen["up"]:
        typer.echo("the cloud is down")
        return
    typer.echo(f"APIs         {seen['auth_url']}")
    typer.echo(f"floating IPs {seen['floating']}")
    typer.echo(f"DNS          {seen['dns']} (for subnets: asks this machine's own resolvers)")
    typer.echo(f"zones        {', '.join(seen['zones']) or 'none'}")
    for name, entry in seen["services"].items():
        if entry["stage"] not in ZONES or entry["stage"] in seen["zones"]:
            typer.echo(f"  {name:26s} {entry['state']:9s} {entry['seconds']:6d} s")
    for entry in seen["missing"]:
        typer.echo(f"missing: {entry}")


@app.command()
def logs(service: Annotated[str | None, typer.Argument(help="The service; without one, the names and sizes of all logs.")] = None) -> None:
    """A service's log."""
    life.require_root()
    settings = Settings.from_environment()
    if service is None:
        for path in sorted(settings.logs.glob("*.log")) if settings.logs.exists() else []:
            typer.echo(f"{path.stem:26s} {path.stat().st_size / 1024:9.0f} KiB  {path}")
        return
    names = [known.name for known in SERVICES]
    if service not in names:
        raise InputError(f"no service {service!r}", hint=f"right would be one of: {', '.join(names)}")
    path = settings.logs / f"{service}.log"
    if not path.exists():
        raise InputError(f"service {service} has not run", hint="tests/cloud/cloud up starts it")
    with path.open(errors="replace") as stream:
        for line in stream:
            sys.stdout.write(line)


@app.command()
def env() -> None:
    """Print what a shell must export for openstacksdk and tools/cluster to find the cloud: eval "$(tests/cloud/cloud env)"."""
    typer.echo(_exports(Settings.from_environment()))


def _exports(settings: Settings) -> str:
    return "\n".join(
        (
            f"export OS_CLIENT_CONFIG_FILE={settings.clouds_yaml}",
            "export OS_CLOUD=gridstead-test",
            f"# administrator: OS_CLOUD=gridstead-test-admin; floating IPs: {settings.floating}; DNS for subnets: {settings.host_address}",
            f"# virtual machines of zone real: {'KVM' if Host().kvm else 'emulated'}",
        )
    )


def main() -> None:
    """Run the command; one clear message and the error's exit code when it fails."""
    # openstacksdk warns of every API that does not answer; here that is a state to report, not a surprise.
    logging.basicConfig(level=logging.CRITICAL)
    try:
        app(standalone_mode=True)
    except GridsteadError as error:
        error_console().print(f"cloud: {error}", style="red", markup=False)
        raise SystemExit(error.exit_code) from None

"""The operator's command, ``tools/cluster``."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from gridstead.cluster import doctor as doctors
from gridstead.cluster import report, software, status, verification
from gridstead.cluster.autoscale.decision import Limits
from gridstead.cluster.autoscale.loop import Autoscaler, Event, duration
from gridstead.cluster.errors import GridsteadError, InputError
from gridstead.cluster.images import images_for
from gridstead.cluster.inventory import root_argv, ssh_argv
from gridstead.cluster.paths import ROOT, state_home
from gridstead.cluster.progress import Progress, error_console, result_console
from gridstead.cluster.resources import Kind
from gridstead.cluster.site import Site, find_spec
from gridstead.cluster.spec import Cluster
from gridstead.cluster.spec_file import load

app = typer.Typer(
    name="cluster",
    help="A whole grid site from one command: nodes, volumes, Slurm, NFS, the ARC CE, checked by real jobs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
image_app = typer.Typer(help="The node image.", no_args_is_help=True)
app.add_typer(image_app, name="image")


def _complete_site() -> list[str]:
    return sorted(path.parent.name for path in (ROOT / "inventories").glob("*/cluster.yml"))


def _complete_node(ctx: typer.Context) -> list[str]:
    try:
        return list(load(find_spec(ctx.params.get("site") or "local")).node_names())
    except GridsteadError:
        return []


SiteOption = Annotated[
    str,
    typer.Option(
        "--site",
        "-s",
        envvar="GRIDSTEAD_SITE",
        autocompletion=_complete_site,
        help="A name under inventories/, a directory, or a cluster.yml.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="The result as JSON on standard output, nothing else.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Also every task, changed or not.")]
AdoptOption = Annotated[
    bool, typer.Option("--adopt", help="Take the cluster over that another state directory's marks are on; its nodes and data stay.")
]
NodeArgument = Annotated[str, typer.Argument(help="The node's name, such as compute001.", autocompletion=_complete_node)]


def _emit(result: dict[str, Any] | list[Any]) -> None:
    typer.echo(json.dumps(result, indent=2))


@contextmanager
def _opened(site: str, *, quiet: bool = False, verbose: bool = False) -> Iterator[Site]:
    with Progress(quiet=quiet, verbose=verbose) as progress:
        yield Site.open(find_spec(site), progress)


@app.command()
def up(  # noqa: PLR0913, PLR0917 - one parameter an option
    site: SiteOption = "local",
    replace: Annotated[
        list[str] | None, typer.Option("--replace", help="Make this node anew (may be given again).", autocompletion=_complete_node)
    ] = None,
    configure: Annotated[bool, typer.Option("--configure/--no-configure", help="Run Ansible on the nodes.")] = True,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the nodes answer; without that nothing is configured.")] = True,
    full: Annotated[bool, typer.Option("--full", help="Run Ansible even where nothing has changed since the last time.")] = False,
    check: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify",
            help="Run a first real job at the end, or none. By default one is run unless nothing was to do and the last one, within an hour, went well.",
            show_default=False,
        ),
    ] = None,
    adopt: AdoptOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make the site be as declared: build, repair or complete it. Run it again at any time."""
    with _opened(site, quiet=quiet or as_json, verbose=verbose) as opened:
        for notice in opened.provider.notices():
            opened.progress.say(notice, style="dim")
        outcome = opened.up(replace=replace or [], configure=configure, full=full, wait=wait, adopt=adopt)
        if check is None:
            check = full or not (outcome.nothing and verification.stands(opened))
        proof = verification.first_check(opened) if configure and wait and check else None
    if as_json:
        _emit(report.up_as_json(opened, outcome, proof))
    elif not quiet:
        report.print_up(opened, outcome, proof, result_console())


@app.command()
def plan(site: SiteOption = "local", as_json: JsonOption = False) -> None:
    """Show what `up` would do to nodes, volumes and networks. Changes nothing."""
    with _opened(site, quiet=True) as opened:
        made, _ = opened.plan()
    if as_json:
        _emit([step.as_json() for step in made.told()])
    else:
        report.print_plan(made, result_console())


@app.command()
def down(
    site: SiteOption = "local",
    volumes: Annotated[bool, typer.Option("--volumes", help="Also the block volumes, with all that is on them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before data is deleted.")] = False,
    adopt: AdoptOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Take the site away. Volumes stay, unless --volumes."""
    if volumes and not yes:
        with _opened(site, quiet=True) as opened:
            opened.confirm_loss(ask=typer.confirm if sys.stdin.isatty() else None)
    with _opened(site, quiet=quiet or as_json) as opened:
        made = opened.down(volumes=volumes, adopt=adopt)
        left = sorted(opened.provider.observe().of(Kind.VOLUME))
    if as_json:
        _emit({"removed": [step.as_json() for step in made.told()], "volumes_left": left})
    elif not quiet:
        typer.echo(f"cluster {opened.spec.name} is gone" + (f"; volumes kept: {', '.join(left)}" if left else ""))


@app.command("status")
def status_command(site: SiteOption = "local", as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Nodes, partitions, jobs, disks, failed services. Exit code 1 when something is not well."""
    with _opened(site, quiet=True) as opened:
        seen = status.look(opened)
    if as_json:
        _emit(seen.as_json())
    elif not quiet:
        report.print_status(seen, result_console())
    if not seen.healthy:
        raise typer.Exit(1)


@app.command("list")
def list_command(as_json: JsonOption = False) -> None:
    """The sites under inventories/ and the nodes each has now, or why that cannot be told."""
    rows = []
    for name in _complete_site():
        row: dict[str, Any] = {"site": name, "provider": None, "declared": None, "nodes": None, "error": None}
        # A site that cannot be read, or whose cloud cannot be asked, hides no other one.
        try:
            spec = load(find_spec(name))
            row |= {"provider": spec.provider, "declared": len(spec.node_names())}
            with _opened(name, quiet=True) as opened:
                row["nodes"] = sorted(opened.nodes())
        except GridsteadError as error:
            row["error"] = error.message.splitlines()[0]
        rows.append(row)
    if as_json:
        _emit(rows)
    else:
        report.print_list(rows, result_console())


@app.command(context_settings={"ignore_unknown_options": True})
def ssh(
    node: NodeArgument,
    command: Annotated[list[str] | None, typer.Argument(help="A command to run there; after --.")] = None,
    site: SiteOption = "local",
    user: Annotated[str | None, typer.Option("--user", "-u", help="Run as this user of the node, in a login shell.")] = None,
) -> None:
    """Log in to a node as root, or run a command there. The exit code is the command's."""
    # One word is a line for a shell; several are a program and its arguments, kept apart.
    given = list(command or [])
    words = ["sh", "-c", given[0]] if len(given) == 1 else given
    if user:
        words = ["runuser", "-l", user, *(["-c", " ".join(given)] if given else [])]
    with _opened(site, quiet=True) as opened:
        access = opened.access(node)
        if words or access.user != "root":
            argv = root_argv(opened.paths, access, *(words or ["bash", "-l"]))
        else:
            argv = ssh_argv(opened.paths, access)
    if sys.stdin.isatty():
        argv.insert(1, "-t")
    os.execvp("ssh", argv)  # noqa: S606 - replaces this process, so that signals and exit codes are ssh's own


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []})
def cvmfs(
    arguments: Annotated[list[str] | None, typer.Argument(help="publish FQRN DIR, list, check FQRN, ls FQRN, …; --help for all.")] = None,
    site: SiteOption = "local",
) -> None:
    """The site's software repositories: publish a directory of this machine, list, check, roll back. As gridstead-cvmfs, on the frontend."""
    with _opened(site, quiet=True) as opened:
        code = software.run(opened, arguments or ["--help"])
    raise typer.Exit(code)


@app.command()
def scale(
    wanted: Annotated[str, typer.Argument(metavar="KIND=N", help="A node kind and how many of it, such as compute=3.")],
    site: SiteOption = "local",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Add nodes, or drain and remove them. Writes the count into cluster.yml."""
    kind, equals, number = wanted.partition("=")
    if not equals or not number.isdecimal():
        raise InputError(f"{wanted!r} is not KIND=N", hint="such as: tools/cluster scale compute=3")
    with _opened(site, quiet=quiet or as_json, verbose=verbose) as opened:
        line, outcome = opened.scale(kind, int(number))
    if as_json:
        _emit({"line": line, **report.outcome_as_json(outcome)})
    elif not quiet:
        typer.echo(f"{opened.paths.spec}:{line}: nodes.{kind}.count is {number}")
        report.print_outcome(outcome, result_console())


@app.command()
def remove(
    nodes: Annotated[list[str], typer.Argument(metavar="NODE...", help="Nodes to take away.", autocompletion=_complete_node)],
    site: SiteOption = "local",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Drain and remove single nodes. Writes count and without into cluster.yml: their numbers are not given again."""
    with _opened(site, quiet=quiet or as_json, verbose=verbose) as opened:
        lines, outcome = opened.remove(nodes)
    if as_json:
        _emit({"lines": lines, **report.outcome_as_json(outcome)})
    elif not quiet:
        for kind, line in lines.items():
            typer.echo(
                f"{opened.paths.spec}:{line}: nodes.{kind} is without {', '.join(node for node in nodes if opened.spec.node_names()[node].kind == kind)}"
            )
        report.print_outcome(outcome, result_console())


@app.command()
def autoscale(  # noqa: PLR0913, PLR0917 - one parameter an option
    kind: Annotated[str, typer.Argument(metavar="KIND", help="A node kind with slurm_node, such as compute.")],
    least: Annotated[int, typer.Option("--min", min=0, max=999, help="So many nodes stay.")],
    most: Annotated[int, typer.Option("--max", min=1, max=999, help="So many nodes there may be.")],
    idle: Annotated[
        str, typer.Option("--idle", metavar="TIME", help="How long a node is idle before it goes: minutes, or 90s, 1h.")
    ] = "10",
    interval: Annotated[str, typer.Option("--interval", metavar="TIME", help="Between two looks at the queue: seconds, or 5m.")] = "30",
    once: Annotated[bool, typer.Option("--once", help="Look once, do what is to do, and end: for cron and systemd's timers.")] = False,
    site: SiteOption = "local",
    as_json: Annotated[bool, typer.Option("--json", help="What happens, as a line of JSON each on standard output, nothing else.")] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Have jobs that wait in Slurm make nodes, and idle nodes go, until interrupted. Writes the count into cluster.yml, as scale does."""
    limits = Limits(least, most, duration(idle, "--idle", unit="m"))
    pause = duration(interval, "--interval", unit="s")

    def emit(event: Event) -> None:
        if as_json:
            typer.echo(json.dumps(event.as_json()))

    with Progress(quiet=quiet or as_json, verbose=verbose) as progress:
        scaler = Autoscaler(find_spec(site), kind, limits, progress, emit)
        if not once:
            scaler.run(interval=pause)
        elif not scaler.once() and not (quiet or as_json):
            typer.echo(f"nothing to do: no job waits that more nodes of kind {kind} could run, and none is idle that may go")


@app.command()
def stop(site: SiteOption = "local", quiet: QuietOption = False) -> None:
    """Shut all nodes down. Everything stays; `start` brings it back."""
    with _opened(site, quiet=quiet) as opened:
        stopped = opened.stop()
    if not quiet:
        typer.echo(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


@app.command()
def start(site: SiteOption = "local", quiet: QuietOption = False, verbose: VerboseOption = False) -> None:
    """Start all nodes of a stopped site and wait until they answer."""
    with _opened(site, quiet=quiet, verbose=verbose) as opened:
        outcome = opened.up(configure=False)
    if not quiet:
        report.print_outcome(outcome, result_console())


@app.command()
def verify(
    site: SiteOption = "local",
    quick: Annotated[bool, typer.Option("--quick", help="Only the first real job.")] = False,
    select: Annotated[str | None, typer.Option("-k", help="Only tests whose names match (pytest's -k).")] = None,
    quiet: QuietOption = False,
) -> None:
    """Run the end-to-end tests on the site: real jobs through every service."""
    with _opened(site, quiet=quiet) as opened:
        if quick:
            proof = verification.first_check(opened)
            typer.echo(str(proof or f"cluster {opened.spec.name} runs no jobs and shares no files: there is nothing to try"))
            return
        code = verification.end_to_end(opened, select=select, quiet=quiet)
    raise typer.Exit(code)


@app.command("inventory")
def inventory_command(
    site: SiteOption = "local",
    list_: Annotated[bool, typer.Option("--list", help="All groups and host variables (the default).")] = False,
    host: Annotated[str | None, typer.Option("--host", help="The variables of one host.")] = None,
) -> None:
    """Ansible's dynamic inventory, as JSON."""
    with _opened(site, quiet=True) as opened:
        listing = opened.inventory()
    _emit(listing["_meta"]["hostvars"].get(host, {}) if host and not list_ else listing)


@app.command()
def logs(
    node: NodeArgument,
    site: SiteOption = "local",
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many lines.")] = 200,
) -> None:
    """The last lines of a node's journal, or of its console when it is down."""
    with _opened(site, quiet=True) as opened:
        typer.echo(opened.provider.console(node, lines), nl=False)


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """What this machine has and lacks, and how the kit adapts. Exit code 1 when something needed is missing."""
    findings = doctors.examine()
    if as_json:
        _emit([finding.as_json() for finding in findings])
    else:
        report.print_findings(findings, result_console())
    if any(finding.needed and not finding.good for finding in findings):
        raise typer.Exit(1)


@app.command()
def schema() -> None:
    """The JSON Schema of cluster.yml, for editors."""
    _emit({"$schema": "https://json-schema.org/draft/2020-12/schema", **Cluster.model_json_schema()})


@image_app.command("build")
def image_build(
    site: SiteOption = "local",
    force: Annotated[bool, typer.Option("--force", help="Build it even when it is there.")] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Build the node image from packages, with the install halves of the roles in it."""
    with _opened(site, quiet=quiet, verbose=verbose) as opened:
        images = images_for(opened.spec, opened.provider)
        opened.provider.preflight([], spare=images.space())
        opened.provider.prepare(opened.progress)
        name = images.ensure(opened.progress, rebuild=force)
    if not quiet:
        typer.echo(name)


@image_app.command("remove")
def image_remove(site: SiteOption = "local") -> None:
    """Remove every image the kit built that no node uses."""
    with _opened(site, quiet=True) as opened:
        images_for(opened.spec, opened.provider).remove()


def _moved_behind(argv: list[str]) -> list[str]:
    """``--site X up`` as ``up --site X``: options may stand before the command too."""
    early: list[str] = []
    rest = list(argv)
    while rest and rest[0].startswith("-") and rest[0] not in ("-h", "--help", "--install-completion", "--show-completion"):
        early.append(rest.pop(0))
        if early[-1] in ("--site", "-s") and rest:
            early.append(rest.pop(0))
    return [*rest[:1], *early, *rest[1:]] if rest else early


#: What a disk says that takes no more.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def _disk_error(error: OSError) -> GridsteadError:
    """One clear message for a disk that is full or takes no writes, whoever met it."""
    places = dict.fromkeys((state_home(), Path(tempfile.gettempdir())))
    free = []
    for place in places:
        with suppress(OSError):
            there = next(path for path in (place, *place.parents) if path.is_dir())
            free.append(f"{shutil.disk_usage(there).free // 2**20} MiB at {place}")
    where = f"{error.filename}: " if error.filename else ""
    return GridsteadError(
        f"{where}{(error.strerror or str(error)).lower()}; free are {', '.join(free)}",
        hint="make room (or choose another disk: GRIDSTEAD_STATE, TMPDIR), then run this again: it goes on where it stopped",
    )


def run(argv: list[str], call: Callable[[list[str]], Any]) -> int:
    """Call the application; every error of ours ends as one message and its exit code.

    Args:
        argv: the arguments, without the program's name.
        call: runs the application on them.
    """
    try:
        call(argv)
    except GridsteadError as error:
        error_console().print(f"error: {error}", style="red", markup=False)
        return error.exit_code
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        error_console().print(f"error: {_disk_error(error)}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        error_console().print("interrupted; `tools/cluster up` continues, `tools/cluster down` takes all away")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def main() -> NoReturn:
    """Entry point."""
    # A command that starts programs in private mount namespaces cannot stand in a directory that goes away.
    argv = _moved_behind(sys.argv[1:])
    sys.exit(run(argv, lambda arguments: app(args=arguments, prog_name="cluster")))

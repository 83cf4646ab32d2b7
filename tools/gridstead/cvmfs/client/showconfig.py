"""``gridstead-cvmfs showconfig``: what a mount would go by."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gridstead.cvmfs.client import config
from gridstead.cvmfs.client.parameters import PARAMETERS, Kind, remarks
from gridstead.cvmfs.client.routes import public

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("fqrn", help="the repository, such as sw.grid.test")
    parser.add_argument(
        "--config", type=Path, default=config.DIRECTORY, metavar="DIR", help="the configuration's directory (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Print all parameters of a repository, as a shell reads them, but for passwords; then check them.

    Returns:
        The exit code.

    Raises:
        InputError: a file or a value is wrong or missing.
    """
    fqrn, found = config.effective(args.fqrn, args.config)
    for name, parameter in sorted(PARAMETERS.items()):
        if name not in found and parameter.kind in (Kind.TEXT, Kind.NUMBER, Kind.SWITCH, Kind.PATH):
            print(f"# {name} is not set")
    for name, value in sorted(found.items()):
        default = "  # default" if PARAMETERS.get(name) and value == PARAMETERS[name].default else ""
        print(f"{name}={shlex.quote(public(value))}{default}")
    sys.stdout.flush()
    for remark in remarks(found):
        print(f"# {remark}", file=sys.stderr)
    config.load(fqrn, args.config)
    return 0

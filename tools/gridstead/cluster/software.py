"""The site's software repositories, from the operator's machine: gridstead-cvmfs run where they are published."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from gridstead.cluster.errors import InputError
from gridstead.cluster.inventory import root_argv
from gridstead.cluster.site import Site

_PROGRAM = "/usr/local/bin/gridstead-cvmfs"
#: A directory of the operator's becomes the repository's new content: it comes as an archive on standard input.
_PUBLISH = f'set -e; tree=$(mktemp -d -p /var/tmp); trap \'rm -rf "$tree"\' EXIT; tar -x -p -C "$tree"; {_PROGRAM} "$@" "$tree"'


def run(site: Site, arguments: Sequence[str]) -> int:
    """Run gridstead-cvmfs on the node that publishes.

    Args:
        site: the site.
        arguments: of gridstead-cvmfs, such as ``["list"]``. In ``publish FQRN DIR``, DIR is a directory here.

    Returns:
        Its exit code.

    Raises:
        InputError: the site publishes no software, or there is no such directory.
    """
    node = site.first_node_with("cvmfs_stratum0")
    if node is None:
        raise InputError(
            f"no node of cluster {site.spec.name} publishes software",
            file=site.paths.spec,
            hint="give one node the service cvmfs_stratum0",
        )
    access = site.access(node)
    words = list(arguments)
    tree = _tree(words)
    if tree is None:
        return subprocess.run(root_argv(site.paths, access, _PROGRAM, *words), check=False).returncode
    words.remove(str(tree))
    # Whoever owns the files here is nobody there.
    archive = ["tar", "-c", "--owner=root:0", "--group=root:0", "--sort=name", "-C", str(tree), "."]
    with subprocess.Popen(archive, stdout=subprocess.PIPE) as sender:
        publish = root_argv(site.paths, access, "sh", "-c", _PUBLISH, "sh", *words)
        code = subprocess.run(publish, stdin=sender.stdout, check=False).returncode
        if sender.stdout:
            sender.stdout.close()
    return code or sender.returncode


def _tree(words: Sequence[str]) -> Path | None:
    """The directory to publish: the second of the words after ``publish`` that is no option, nor an option's value."""
    if not words or words[0] != "publish":
        return None
    plain, skip = [], False
    for word in words[1:]:
        if skip:
            skip = False
        elif word in ("--tag", "-a", "--message", "-m"):
            skip = True
        elif not word.startswith("-"):
            plain.append(word)
    if len(plain) < 2:
        return None
    tree = Path(plain[1])
    if not tree.is_dir():
        raise InputError(f"{tree}: no such directory here", hint="name the directory whose content is to be published")
    return tree

"""The command ``gridstead-cvmfs``, or ``python -m gridstead.cvmfs``."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from gridstead.cvmfs.digest import Hash
from gridstead.cvmfs.entry import Entry, Kind
from gridstead.cvmfs.errors import CvmfsError, InputError
from gridstead.cvmfs.history import Tag
from gridstead.cvmfs.publish import operations
from gridstead.cvmfs.publish.catalogs import located
from gridstead.cvmfs.publish.check import check
from gridstead.cvmfs.publish.collect import collect
from gridstead.cvmfs.publish.layout import Layout, repositories
from gridstead.cvmfs.publish.repository import Repository
from gridstead.cvmfs.publish.settings import Settings
from gridstead.cvmfs.whitelist import VALID_DAYS

#: Days that a whitelist may be valid.
_LONGEST = 3650
_LETTERS = {
    Kind.DIRECTORY: "d",
    Kind.FILE: "-",
    Kind.SYMLINK: "l",
    Kind.FIFO: "p",
    Kind.SOCKET: "s",
    Kind.CHARACTER: "c",
    Kind.BLOCK: "b",
}


def _stamp(moment: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))


def _shown(text: str) -> str:
    """A name as it can be printed: what is not UTF-8, and what a terminal would act on, is escaped."""
    return "".join(
        letter
        if letter.isprintable()
        else letter.encode("utf-8", "surrogateescape").decode("latin-1").encode("unicode_escape").decode("ascii")
        for letter in text
    )


def _say(arguments: argparse.Namespace, value: dict[str, object] | list[dict[str, object]], text: str) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=True) if arguments.json else text)


def _repository(arguments: argparse.Namespace) -> Repository:
    return Repository(Layout(arguments.fqrn, arguments.prefix))


def _create(arguments: argparse.Namespace) -> int:
    settings = Settings(
        arguments.fqrn,
        hash_algorithm=arguments.hash,
        compression_algorithm=arguments.compression,
        repository_ttl=arguments.ttl,
        garbage_collection=not arguments.no_gc,
        include_xattrs=arguments.xattrs,
        ignore_special_files=arguments.ignore_special_files,
    )
    layout = Layout(arguments.fqrn, arguments.prefix)
    about = {key: value for key, value in (("administrator", arguments.administrator), ("description", arguments.description)) if value}
    operations.create(layout, settings, about)
    value: dict[str, object] = {"repository": layout.fqrn, "web": str(layout.web), "public_key": str(layout.public_key)}
    _say(arguments, value, f"{layout.fqrn} is created in {layout.web}; clients need {layout.public_key}")
    return 0


def _transaction(arguments: argparse.Namespace) -> int:
    tree = operations.transaction(_repository(arguments))
    _say(arguments, {"tree": str(tree)}, f"change what you like in {tree}, then publish or abort")
    return 0


def _abort(arguments: argparse.Namespace) -> int:
    operations.abort(_repository(arguments))
    _say(arguments, {"aborted": True}, "the transaction is given up")
    return 0


def _publish(arguments: argparse.Namespace) -> int:
    repository = _repository(arguments)
    tag = Tag(arguments.tag, Hash(bytes(20)), 0, 0, arguments.message) if arguments.tag else None
    report = operations.publish(repository, arguments.directory, tag)
    text = f"revision {report.revision}: {report.files} files, {report.read} of them read, {report.objects} new objects of {report.bytes} bytes"
    if not report.changed:
        text = f"nothing has changed; revision {report.revision} stays"
    if report.left_out:
        text += f"; {len(report.left_out)} special files are left out"
    _say(arguments, asdict(report), f"{text} ({report.seconds:.1f} s)")
    return 0


def _tag(arguments: argparse.Namespace) -> int:
    repository = _repository(arguments)
    if arguments.remove:
        operations.remove_tag(repository, arguments.name)
        _say(arguments, {"removed": arguments.name}, f"tag {arguments.name} is removed")
        return 0
    tag = operations.add_tag(repository, arguments.name, arguments.message, arguments.revision)
    _say(
        arguments, {"tag": tag.name, "revision": tag.revision, "catalog": str(tag.catalog)}, f"tag {tag.name} names revision {tag.revision}"
    )
    return 0


def _rollback(arguments: argparse.Namespace) -> int:
    manifest = operations.rollback(_repository(arguments), arguments.to)
    value: dict[str, object] = {"revision": manifest.revision, "catalog": str(manifest.catalog)}
    _say(arguments, value, f"revision {manifest.revision} has the content of {arguments.to}")
    return 0


def _gc(arguments: argparse.Namespace) -> int:
    done = collect(_repository(arguments), arguments.keep, dry_run=arguments.dry_run)
    verb = "could be removed" if arguments.dry_run else "removed"
    _say(arguments, asdict(done), f"{done.kept} revisions kept, {done.objects} objects of {done.bytes} bytes {verb}")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    findings = check(_repository(arguments))
    text = f"{findings.catalogs} catalogues and {findings.objects} objects with {findings.bytes} bytes: "
    _say(arguments, asdict(findings), text + ("all is right" if not findings.problems else f"{len(findings.problems)} problems"))
    if not arguments.json:
        for problem in findings.problems:
            print(_shown(problem), file=sys.stderr)
    return 1 if findings.problems else 0


def _resign(arguments: argparse.Namespace) -> int:
    # Clients refuse a whitelist whose time is over, and with it the repository.
    for option, value, low in (("days", arguments.days, 1), ("unless", arguments.unless, 0)):
        if not low <= value <= _LONGEST:
            raise InputError(f"--{option} is {value}; {low} to {_LONGEST} would be right")
    signed, whitelist = operations.resign(_repository(arguments), arguments.days, arguments.unless)
    report: dict[str, object] = {"signed": signed, "expires": whitelist.expires}
    _say(arguments, report, f"the whitelist is {'signed' if signed else 'left as it is'}, and valid until {_stamp(whitelist.expires)}")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    if arguments.fqrn is None:
        names = repositories(arguments.prefix)
        _say(arguments, [{"repository": name} for name in names], "\n".join(names) or "no repository is published here")
        return 0
    repository = _repository(arguments)
    with repository.reading() as scratch:
        manifest = repository.manifest
        tags = repository.tags(manifest, scratch)
        revisions = list(repository.revisions(manifest, scratch)) if arguments.revisions else []
    rows: list[dict[str, object]] = []
    lines = []
    for number, modified, ref in revisions:
        names = [tag.name for tag in tags if tag.catalog == ref.hash]
        rows.append({"revision": number, "time": modified, "catalog": str(ref.hash), "tags": names})
        lines.append(f"{number:>8}  {_stamp(modified)}  {ref.hash}  {' '.join(names)}".rstrip())
    for tag in [] if arguments.revisions else tags:
        rows.append({**tag._asdict(), "catalog": str(tag.catalog)})
        lines.append(f"{tag.name:20} {tag.revision:>8}  {_stamp(tag.timestamp)}  {_shown(tag.description)}".rstrip())
    _say(arguments, rows, "\n".join(lines))
    return 0


def _info(arguments: argparse.Namespace) -> int:
    repository = _repository(arguments)
    manifest = repository.manifest
    try:
        whitelist = f"valid until {_stamp(repository.whitelist().expires)}"
    except CvmfsError as error:
        whitelist = error.message
    value: dict[str, object] = {
        "repository": manifest.name,
        "revision": manifest.revision,
        "published": manifest.published,
        "catalog": str(manifest.catalog),
        "ttl": manifest.ttl,
        "whitelist": whitelist,
        "in_transaction": repository.in_transaction,
        "web": str(repository.layout.web),
        "public_key": str(repository.layout.public_key),
    }
    shown = {**value, "published": _stamp(manifest.published), "in_transaction": "yes" if repository.in_transaction else "no"}
    _say(arguments, value, "\n".join(f"{key:15} {text}" for key, text in shown.items()))
    return 0


def _path(text: str) -> str:
    """A path in a repository from what people write: with or without the slash at the beginning, and without one at the end."""
    names = [name for name in text.split("/") if name not in ("", ".")]
    if ".." in names:
        raise InputError(f"{text!r}: .. is not understood here")
    return "".join(f"/{name}" for name in names)


def _row(entry: Entry) -> dict[str, object]:
    return {
        "name": entry.name,
        "kind": entry.kind.name.lower(),
        "mode": f"{entry.mode & 0o7777:04o}",
        "size": entry.size,
        "mtime": entry.mtime,
        "uid": entry.uid,
        "gid": entry.gid,
        "hash": str(entry.hash) if entry.hash else None,
        "chunked": entry.chunked,
        "symlink": entry.symlink or None,
        "nested": entry.nested_mountpoint or entry.nested_root,
    }


def _line(entry: Entry) -> str:
    bits = "".join(letter if entry.mode >> (8 - place) & 1 else "-" for place, letter in enumerate("rwxrwxrwx"))
    arrow = f" -> {_shown(entry.symlink)}" if entry.symlink else ""
    return f"{_LETTERS[entry.kind]}{bits} {entry.uid:>5} {entry.gid:>5} {entry.size:>12} {_stamp(entry.mtime)[:16]} {_shown(entry.name)}{arrow}"


def _ls(arguments: argparse.Namespace) -> int:
    repository = _repository(arguments)
    with repository.reading() as scratch:
        root = repository.revision(arguments.revision, scratch)
        path = _path(arguments.path)
        with located(repository.store, root, path, scratch) as found:
            if found is None:
                raise CvmfsError(f"{arguments.fqrn} has no {path or '/'}")
            entries = found.catalog.listdir(path) if found.entry.is_directory else [found.entry]
            entries = [entry for entry in entries if not entry.hidden]
    lines = (_line(entry) for entry in entries) if arguments.long else (_shown(entry.name) for entry in entries)
    _say(arguments, [_row(entry) for entry in entries], "\n".join(lines)) if entries or arguments.json else None
    return 0


def _cat(arguments: argparse.Namespace) -> int:
    repository = _repository(arguments)
    with repository.reading() as scratch:
        root = repository.revision(arguments.revision, scratch)
        path = _path(arguments.path)
        with located(repository.store, root, path, scratch) as found:
            if found is None:
                raise CvmfsError(f"{arguments.fqrn} has no {path or '/'}")
            entry = found.entry
            if entry.kind is not Kind.FILE or entry.external:
                raise CvmfsError(f"{path or '/'} is no file with content in the repository")
            chunks = found.catalog.chunks(entry) if entry.chunked and entry.hash is None else []
        parts = [(chunk.hash, chunk.size) for chunk in chunks]
        if entry.hash is not None:
            parts = [(entry.hash, entry.size)]
        for name, size in parts:
            # Verified before any of it is shown.
            data = b"".join(repository.store.blocks(name, compression=entry.compression, size=size))
            sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
    return 0


_Run = Callable[[argparse.Namespace], int]


class _Add(Protocol):
    """What declares a command."""

    def __call__(self, name: str, run: _Run, text: str, *, fqrn: bool = True) -> argparse.ArgumentParser:
        """Declare it."""


class _Parser(argparse.ArgumentParser):
    """One line for what is wrong."""

    def error(self, message: str) -> None:  # type: ignore[override]  # it does not return, like what it overrides
        raise InputError(message, hint=f"see {self.prog} --help")


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON")
    common.add_argument("--prefix", type=Path, default=Path("/"), metavar="DIR", help="what stands for / (default: /)")
    parser = _Parser(prog="gridstead-cvmfs", description="Publish, look after, and mount CVMFS repositories.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, run: _Run, text: str, *, fqrn: bool = True) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, parents=[common])
        added.set_defaults(run=run)
        if fqrn:
            added.add_argument("fqrn", metavar="FQRN", help="the repository, such as sw.grid.test")
        return added

    _add_changing(command)
    _add_looking(command)
    for name, text in (("mount", "Mount a repository."), ("showconfig", "Show the configuration by which a repository is mounted.")):
        added = commands.add_parser(name, help=text, description=text)
        if argv[:1] == [name]:
            # The client needs more than the publisher, and is loaded for its own commands only.
            client = importlib.import_module(f"gridstead.cvmfs.client.{name}")
            client.add_arguments(added)
            added.set_defaults(run=client.run)
    return parser


def _add_changing(command: _Add) -> None:
    """Declare the commands that change a repository."""
    create = command("create", _create, "Create a repository with new keys.")
    create.add_argument("--hash", choices=("sha1", "rmd160", "shake128"), default="sha1", help="hash algorithm (default: sha1)")
    create.add_argument("--compression", choices=("zlib", "none"), default="zlib", help="of files (default: zlib)")
    create.add_argument("--ttl", type=int, default=Settings.repository_ttl, help="seconds clients go by a manifest (default: %(default)s)")
    create.add_argument("--no-gc", action="store_true", help="never remove old revisions")
    create.add_argument("--xattrs", action="store_true", help="publish extended attributes")
    create.add_argument("--ignore-special-files", action="store_true", help="leave pipes, sockets and devices out instead of failing")
    create.add_argument("--administrator", default="", help="who looks after it")
    create.add_argument("--description", default="", help="what it is for")
    command("transaction", _transaction, "Open a transaction; prints the tree that can be changed.")
    publish = command("publish", _publish, "Publish the open transaction, or a directory as the whole content.")
    publish.add_argument("directory", nargs="?", type=Path, metavar="DIR", help="the new content; without it, the open transaction's")
    publish.add_argument("--tag", "-a", help="name the new revision")
    publish.add_argument("--message", "-m", default="", help="what to say of the tag")
    command("abort", _abort, "Give the open transaction up.")
    tag = command("tag", _tag, "Name a revision, or remove a name.")
    tag.add_argument("name", metavar="NAME")
    tag.add_argument("--message", "-m", default="", help="what to say of it")
    tag.add_argument("--revision", "-r", help="number or tag (default: the current revision)")
    tag.add_argument("--remove", action="store_true", help="remove the tag")
    rollback = command("rollback", _rollback, "Make an old revision's content the new one.")
    rollback.add_argument("to", metavar="TAG|REVISION")
    gc = command("gc", _gc, "Remove what only old revisions need. Tagged revisions are kept.")
    gc.add_argument("--keep", type=int, default=10, metavar="N", help="keep the last N revisions (default: %(default)s)")
    gc.add_argument("--dry-run", action="store_true", help="only look")
    resign = command("resign", _resign, "Sign the whitelist again.")
    resign.add_argument("--days", type=int, default=VALID_DAYS, help=f"how long it is valid, 1 to {_LONGEST} (default: %(default)s)")
    resign.add_argument("--unless", type=int, default=0, metavar="DAYS", help="leave it when it is valid for more than DAYS")


def _add_looking(command: _Add) -> None:
    """Declare the commands that only look."""
    command("check", _check, "Verify signatures, catalogues and every object of the current and the tagged revisions.")
    listing = command("list", _list, "List the repositories here, or a repository's tags.", fqrn=False)
    listing.add_argument("fqrn", nargs="?", metavar="FQRN")
    listing.add_argument("--revisions", action="store_true", help="list revisions instead of tags")
    command("info", _info, "Show what a repository is at.")
    for name, run, text in (("ls", _ls, "List a directory of a repository."), ("cat", _cat, "Print a file of a repository.")):
        added = command(name, run, text)
        added.add_argument("path", metavar="PATH", **({"nargs": "?", "default": "/"} if name == "ls" else {}))  # type: ignore[arg-type]  # options of add_argument
        added.add_argument("--revision", "-r", help="number or tag (default: the current revision)")
        if name == "ls":
            added.add_argument("-l", "--long", action="store_true", help="with owner, size and time")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0, or 1 when something failed, or 2 when the input was wrong; what is wrong is on standard error.
    """
    os.umask(0o022)
    try:
        words = sys.argv[1:] if argv is None else list(argv)
        arguments = _parser(words).parse_args(words)
        run: _Run = arguments.run
        return run(arguments)
    except CvmfsError as error:
        print(f"gridstead-cvmfs: {_shown_lines(error)}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # Whoever read has enough. Python would complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"gridstead-cvmfs: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("gridstead-cvmfs: interrupted", file=sys.stderr)
        return 130


def _shown_lines(error: CvmfsError) -> str:
    return "\n".join(_shown(line) for line in str(error).split("\n"))

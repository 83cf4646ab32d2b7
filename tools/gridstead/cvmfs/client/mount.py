"""``gridstead-cvmfs mount``: mounts a repository and stays with it."""

from __future__ import annotations

import contextlib
import grp
import logging
import os
import pwd
import resource
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gridstead.cvmfs.client import config
from gridstead.cvmfs.client.repository import Repository
from gridstead.cvmfs.errors import CvmfsError, InputError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from gridstead.cvmfs.client.config import Configuration

_log = logging.getLogger("gridstead.cvmfs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("fqrn", help="the repository, such as sw.grid.test")
    parser.add_argument("mountpoint", nargs="?", type=Path, help="where to mount it (default: CVMFS_MOUNT_DIR/FQRN, that is /cvmfs/FQRN)")
    parser.add_argument(
        "--config", type=Path, default=config.DIRECTORY, metavar="DIR", help="the configuration's directory (default: %(default)s)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter that has precedence over the files")
    parser.add_argument("--check", action="store_true", help="only check the configuration and the servers; mount nothing")
    parser.add_argument("--verbose", action="store_true", help="also log what goes right")


def run(args: argparse.Namespace) -> int:
    """Mount, and return when the repository is unmounted.

    Returns:
        The exit code.

    Raises:
        CvmfsError: it cannot be mounted.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.DEBUG if args.verbose else logging.INFO, format="%(message)s")
    logging.captureWarnings(capture=True)
    # Trusted as far as its exceptions: it logs each one that a handler turned into an errno.
    logging.getLogger("pyfuse3").setLevel(logging.CRITICAL)
    settings = {}
    for pair in args.set:
        name, equals, value = pair.partition("=")
        if not equals or not name.startswith("CVMFS_"):
            raise InputError(f"--set {pair}: CVMFS_NAME=VALUE would be right")
        settings[name] = value
    configuration = config.load(args.fqrn, args.config, settings)
    for remark in configuration.remarks:
        _log.warning("%s", remark)
    if args.check:
        return _check(configuration)
    return _mount(configuration, args.mountpoint or configuration.mountpoint)


def _check(configuration: Configuration) -> int:
    _prepare_directories(configuration)
    with _as_user(configuration.user):
        repository = Repository(configuration)
        try:
            repository.check()
        finally:
            repository.close()
    print(f"{configuration.fqrn}: revision {repository.tree.revision}, root catalogue {repository.tree.root.hash}: all is well")
    return 0


def _mount(configuration: Configuration, mountpoint: Path) -> int:
    if not mountpoint.is_dir():
        raise InputError(f"the mount point {mountpoint} is no directory")
    if os.path.ismount(mountpoint):
        raise InputError(f"something is mounted on {mountpoint} already")
    try:
        # Imported late: everything else also works where the binding is not installed.
        from gridstead.cvmfs.client import filesystem
    except ImportError as error:
        raise CvmfsError(f"the FUSE binding is not there: {error}", hint="install python3-pyfuse3 and fuse3") from None
    _raise_limits(configuration.open_files)
    _prepare_directories(configuration)
    with _as_user(configuration.user):
        repository = Repository(configuration)
    try:
        # Before it is mounted: a repository that cannot be trusted is never seen.
        with _as_user(configuration.user):
            repository.load()
        _log.info("%s: revision %d on %s", configuration.fqrn, repository.tree.revision, mountpoint)
        filesystem.serve(repository, str(mountpoint), lambda: _drop_privileges(configuration.user), _ready)
    except RuntimeError as error:
        raise CvmfsError(f"{mountpoint} cannot be mounted: {error}", hint="is /dev/fuse there, and is this root?") from None
    finally:
        repository.close()
    return 0


def _account(user: str) -> pwd.struct_passwd | None:
    """The account to become; None for staying who one is.

    Raises:
        InputError: there is no such user. To go on as root would be to read what comes from the network with all rights.
    """
    if os.geteuid() or user == "root":
        return None
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise InputError(
            f"CVMFS_USER is '{user}', but there is no such user", hint="make it (useradd --system), or set CVMFS_USER to one that is there"
        ) from None


def _prepare_directories(configuration: Configuration) -> None:
    """Make the cache's directories, for the user that the client runs as."""
    account = _account(configuration.user)
    for directory in (configuration.cache, configuration.state):
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if account is not None and directory.stat().st_uid != account.pw_uid:
                for path in (directory, *directory.rglob("*")):
                    os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
        except OSError as error:
            raise InputError(f"{directory} cannot be made: {error.strerror}") from None


@contextlib.contextmanager
def _as_user(user: str) -> Iterator[None]:
    """Work as the client's user for a while: what is made in the cache now has to be that user's later."""
    account = _account(user)
    if account is None:
        yield
        return
    os.setegid(account.pw_gid)
    os.seteuid(account.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def _drop_privileges(user: str) -> None:
    """Become the client's user. What is in the repository is not its, and what comes from the network is nobody's to trust."""
    account = _account(user)
    if account is None:
        return
    with contextlib.suppress(KeyError):
        os.setgroups([group.gr_gid for group in grp.getgrall() if user in group.gr_mem])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    os.environ.update(HOME=account.pw_dir, USER=user, LOGNAME=user)


def _raise_limits(wanted: int) -> None:
    """Each file in use is an open file of the client's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), max(hard, wanted) if os.geteuid() == 0 else hard))


def _ready() -> None:
    """Tell systemd that the repository is mounted (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, contextlib.suppress(OSError):
            channel.connect(f"\0{address[1:]}" if address.startswith("@") else address)
            channel.sendall(b"READY=1")

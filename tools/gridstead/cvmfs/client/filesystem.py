"""The repository as a FUSE file system. The only file that knows the binding, pyfuse3, which works on trio's event loop.

What needs no download is answered at once, in the loop. The rest goes to threads, so that a slow server delays only those who
wait for it.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import signal
import stat
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import pyfuse3  # type: ignore[import-not-found]  # a package of the nodes' distribution (python3-pyfuse3), not built here
import trio  # type: ignore[import-not-found]  # comes with it

from gridstead.cvmfs.client.fetch import OfflineError
from gridstead.cvmfs.client.files import OpenFile
from gridstead.cvmfs.client.links import expand
from gridstead.cvmfs.client.tree import ROOT, Directory, NotFoundError, NotOpenError
from gridstead.cvmfs.errors import CvmfsError, FormatError, RevokedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gridstead.cvmfs.client.repository import Repository
    from gridstead.cvmfs.client.store import Reference
    from gridstead.cvmfs.entry import Entry

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

#: Threads that wait for servers at a time.
_THREADS = 64
#: Threads for the client's own attributes, which whoever watches the mount asks for: the more so when servers are slow.
_ATTRIBUTES = 8
#: Requests of the kernel's at a time. Most of them wait for a server when there are many, and those must not keep the others from being taken.
_REQUESTS = 4096
#: Absent names in the root directory that the kernel may remember; more are not remembered.
_ABSENT = 4096
#: Entries read from the catalogue at a time when a directory is listed.
_PAGE = 256
#: What a listing's position is for the entries that are in no catalogue.
_DOT, _DOT_DOT, _FIRST = 1, 2, 2
_BLOCK = 4096


def _answer(handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Turn what a handler raises into an errno: any other exception would end the mount."""

    @functools.wraps(handler)
    async def answer(*arguments: Any) -> Any:
        try:
            return await handler(*arguments)
        except pyfuse3.FUSEError:
            raise
        except NotFoundError as error:
            raise pyfuse3.FUSEError(error.number) from None
        except OfflineError as error:
            _log.debug("%s", error)
        except (CvmfsError, OSError) as error:
            _log.error("%s", error)
        except Exception:  # noqa: BLE001 - see above; it is logged
            _log.exception("an error of this program")
        raise pyfuse3.FUSEError(errno.EIO) from None

    return answer


class _Listing:
    """An open directory: its entries as they were when it was opened."""

    def __init__(self, inode: int, directory: Directory) -> None:
        self.inode = inode
        self.directory = directory


class Filesystem(pyfuse3.Operations):  # type: ignore[misc]  # untyped, as above
    """A repository's file operations.

    Args:
        repository: loaded.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, repository: Repository) -> None:
        super().__init__()
        self._repository = repository
        self._tree = repository.tree
        self._environment = repository.configuration.environment
        self._timeout = repository.configuration.kernel_timeout
        self._owner: tuple[int, int] | None = None
        self._handles: dict[int, OpenFile | _Listing] = {}
        self._next_handle = 1
        self._absent: set[bytes] = set()
        self._limiter = trio.CapacityLimiter(_THREADS)
        self._attributes_limiter = trio.CapacityLimiter(_ATTRIBUTES)
        self._nursery: Any = None
        self.ended: RevokedError | None = None

    # Running

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve the mounted file system until it is unmounted or a signal ends it.

        Args:
            ready: called when it can be used.
        """
        if self._repository.configuration.claim_ownership:
            self._owner = (os.getuid(), os.getgid())
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._signals)
            nursery.start_soon(self._refresh_in_time)
            ready()
            await pyfuse3.main(max_tasks=_REQUESTS)
            nursery.cancel_scope.cancel()

    async def _signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
            async for number in received:
                if number == signal.SIGHUP:
                    self._nursery.start_soon(self._refresh)
                else:
                    pyfuse3.terminate()

    async def _refresh_in_time(self) -> None:
        while True:
            await trio.sleep(max(0.2, self._repository.schedule.wait()))
            if self._repository.schedule.wait() <= 0:
                await self._refresh()

    async def _refresh(self) -> None:
        """Show a new revision, if there is one, and have the kernel forget what has changed."""
        try:
            names = await self._in_thread(self._repository.refresh)
        except RevokedError as error:
            self.ended = error
            pyfuse3.terminate()
            return
        except CvmfsError as error:
            _log.warning("%s", error)
            return
        except Exception:  # noqa: BLE001 - the mount goes on with what it has
            _log.exception("an error of this program")
            return
        if names is None:
            return
        absent, self._absent = self._absent, set()
        for name in {*map(os.fsencode, names), *absent}:
            pyfuse3.invalidate_entry_async(ROOT, name, ignore_enoent=True)
        for handle in list(self._handles.values()):
            if isinstance(handle, OpenFile):
                await self._invalidate_if_changed(handle)

    async def _invalidate_if_changed(self, file: OpenFile) -> None:
        """A name whose file is open is kept by the kernel when the names above it are forgotten."""
        parent, _, name = file.entry.path.rpartition("/")
        try:
            now = await self._operation(lambda: self._tree.inode_of(file.entry.path))
        except NotFoundError:
            now = 0
        except CvmfsError:
            return
        if now != file.inode:
            try:
                directory = await self._operation(lambda: self._tree.inode_of(parent))
            except CvmfsError:
                return
            pyfuse3.invalidate_entry_async(directory, os.fsencode(name), ignore_enoent=True)

    async def _in_thread(self, function: Callable[..., _T], *arguments: Any) -> _T:
        result: _T = await trio.to_thread.run_sync(function, *arguments, limiter=self._limiter)
        return result

    async def _operation(self, operation: Callable[[], _T]) -> _T:
        """An operation of the tree: at once when all catalogues are open, else in a thread."""
        try:
            return self._tree.now(operation)
        except NotOpenError:
            return await self._in_thread(self._tree.run, operation)

    # Names and attributes

    def _attributes(self, inode: int, entry: Entry) -> Any:
        found = pyfuse3.EntryAttributes()
        found.st_ino = inode
        found.st_mode = entry.mode
        found.st_nlink = entry.nlink
        found.st_uid, found.st_gid = self._owner or (entry.uid, entry.gid)
        found.st_rdev = entry.rdev
        found.st_size = len(self._target(entry)) if stat.S_ISLNK(entry.mode) else entry.size
        found.st_blksize = _BLOCK
        found.st_blocks = -(-found.st_size // 512)
        found.st_atime_ns = found.st_mtime_ns = found.st_ctime_ns = entry.mtime * 10**9 + entry.mtime_ns
        found.entry_timeout = found.attr_timeout = self._timeout
        return found

    def _target(self, entry: Entry) -> bytes:
        return os.fsencode(expand(entry.symlink, self._environment))

    @_answer
    async def lookup(self, parent: int, name: bytes, ctx: Any) -> Any:  # noqa: ARG002 - the binding's signature
        """A name in a directory."""
        try:
            inode, entry = await self._operation(lambda: self._tree.lookup(parent, name))
        except NotFoundError as error:
            if error.number != errno.ENOENT or (parent == ROOT and len(self._absent) >= _ABSENT):
                raise
            if parent == ROOT:
                self._absent.add(name)
            nothing = pyfuse3.EntryAttributes()
            nothing.st_ino = 0
            nothing.entry_timeout = self._timeout
            return nothing
        return self._attributes(inode, entry)

    async def forget(self, inode_list: list[tuple[int, int]]) -> None:
        """The kernel does not know these any more."""
        for inode, number in inode_list:
            self._tree.forget(inode, number)

    @_answer
    async def getattr(self, inode: int, ctx: Any = None) -> Any:  # noqa: ARG002 - the binding's signature
        """A file's attributes."""
        return self._attributes(inode, await self._operation(lambda: self._tree.entry(inode)))

    @_answer
    async def readlink(self, inode: int, ctx: Any) -> bytes:  # noqa: ARG002 - the binding's signature
        """A link's target."""
        target = self._target(await self._operation(lambda: self._tree.entry(inode)))
        if b"\0" in target:
            raise FormatError(f"link {inode} leads nowhere when its variables are filled in")
        return target

    @_answer
    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:  # noqa: ARG002 - the binding's signature
        """An extended attribute."""
        entry = await self._operation(lambda: self._tree.entry(inode))
        text = os.fsdecode(name)
        if text.startswith(("user.", "xfsroot.")):
            value: bytes | None = await trio.to_thread.run_sync(
                self._repository.attributes.get, entry, inode, text, limiter=self._attributes_limiter
            )
        else:
            # The kernel asks for security.capability at every start of a program.
            value = entry.xattrs().get(text)
        if value is None:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return value

    @_answer
    async def listxattr(self, inode: int, ctx: Any) -> list[bytes]:  # noqa: ARG002 - the binding's signature
        """The names of the extended attributes."""
        entry = await self._operation(lambda: self._tree.entry(inode))
        return [os.fsencode(name) for name in self._repository.attributes.names(entry)]

    @_answer
    async def statfs(self, ctx: Any) -> Any:  # noqa: ARG002 - the binding's signature
        """The cache's size and filling, and how many files the repository has."""
        cache = self._repository.store.cache
        _, counters = await self._operation(lambda: self._tree.counters(""))
        files = sum(value for name, value in counters.items() if name.partition("_")[2] in {"regular", "symlink", "dir", "special"})
        used = cache.usage()
        size = max(cache.quota, used) if cache.quota is not None else used
        found = pyfuse3.StatvfsData()
        found.f_bsize = found.f_frsize = _BLOCK
        found.f_blocks = size // _BLOCK
        found.f_bfree = found.f_bavail = (size - used) // _BLOCK
        found.f_files = files
        found.f_ffree = found.f_favail = 0
        found.f_namemax = 255
        return found

    # Directories

    def _handle(self, content: OpenFile | _Listing) -> int:
        handle = self._next_handle
        self._next_handle += 1
        self._handles[handle] = content
        return handle

    @_answer
    async def opendir(self, inode: int, ctx: Any) -> int:  # noqa: ARG002 - the binding's signature
        """Begin a listing."""

        def hold() -> Directory:
            directory = self._tree.directory(inode)
            directory.content.lookups += 1
            return directory

        directory = await self._operation(hold)
        self._repository.attributes.directories_opened += 1
        return self._handle(_Listing(inode, directory))

    @_answer
    async def readdir(self, handle: int, start: int, token: Any) -> None:
        """The entries from a position on, with their attributes, as many as the kernel takes."""
        listing = self._handles[handle]
        assert isinstance(listing, _Listing)  # noqa: S101 - handles of opendir
        directory = listing.directory
        if start < _DOT_DOT:
            parent = await self._parent(directory)
            own = (listing.inode, directory.entry)
            # The kernel does not count these two as lookups.
            for position, name, (inode, entry) in ((_DOT, b".", own), (_DOT_DOT, b"..", parent or own)):
                if start < position and not pyfuse3.readdir_reply(token, name, self._attributes(inode, entry), position):
                    return
            start = _FIRST
        after = start - _FIRST
        while True:
            children = await self._operation(lambda: self._tree.page(directory, after, _PAGE))  # noqa: B023 - called at once
            if not children:
                return
            for child in children:
                attributes = self._attributes(child.inode, child.entry)
                if not pyfuse3.readdir_reply(token, os.fsencode(child.entry.name), attributes, child.row + _FIRST):
                    return
                self._tree.remember(child.inode)
            after = children[-1].row

    async def _parent(self, directory: Directory) -> tuple[int, Entry] | None:
        if not directory.path:
            return None

        def find() -> tuple[int, Entry]:
            inode = self._tree.inode_of(directory.path.rpartition("/")[0])
            return inode, self._tree.entry(inode)

        try:
            return await self._operation(find)
        except NotFoundError:
            return None

    @_answer
    async def releasedir(self, handle: int) -> None:
        """End a listing."""
        listing = self._handles.pop(handle)
        assert isinstance(listing, _Listing)  # noqa: S101 - handles of opendir
        self._tree.release(listing.directory.content)

    # Files

    @_answer
    async def open(self, inode: int, flags: int, ctx: Any) -> Any:  # noqa: ARG002 - the binding's signature
        """Open a file; what is not chunked is fetched now, so that an error comes here."""
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise pyfuse3.FUSEError(errno.EROFS)
        entry = await self._operation(lambda: self._tree.entry(inode))
        chunks = await self._operation(lambda: self._tree.chunks(inode)) if entry.chunked else ()
        file = OpenFile(self._repository.store, entry, inode, chunks)
        if not chunks and not file.is_at_hand():
            await self._in_thread(file.read, 0, 1)
        self._repository.attributes.opened += 1
        # An inode's content never changes: the kernel may keep it.
        return pyfuse3.FileInfo(fh=self._handle(file), keep_cache=not entry.direct_io, direct_io=entry.direct_io)

    @_answer
    async def read(self, handle: int, offset: int, size: int) -> bytes:
        """Bytes of a file."""
        file = self._handles[handle]
        assert isinstance(file, OpenFile)  # noqa: S101 - handles of open
        data = file.now(offset, size)
        if data is None:
            data = await self._in_thread(file.read, offset, size)
        ahead = file.ahead(offset + size)
        if ahead is not None:
            self._nursery.start_soon(self._fetch_ahead, ahead)
        return data

    async def _fetch_ahead(self, reference: Reference) -> None:
        try:
            await self._in_thread(self._repository.store.get, reference)
        except CvmfsError as error:
            _log.debug("%s", error)  # it comes again when it is read
        except Exception:  # noqa: BLE001 - it would end the mount
            _log.exception("an error of this program")

    @_answer
    async def release(self, handle: int) -> None:
        """Close a file."""
        del self._handles[handle]


def serve(repository: Repository, mountpoint: str, before: Callable[[], None], ready: Callable[[], None]) -> None:
    """Mount a repository and serve it until it is unmounted or the program is told to end.

    Args:
        repository: loaded after the mount, by ``before``.
        mountpoint: a directory.
        before: called when it is mounted and nothing is served yet, to drop privileges.
        ready: called when it can be used.

    Raises:
        RuntimeError: it cannot be mounted.
        RevokedError: this node's blacklist forbids the revision that was mounted, since a moment ago.
    """
    configuration = repository.configuration
    options = {"ro", "nosuid", "nodev", "noatime", "allow_other", f"fsname={configuration.fqrn}", "subtype=gridstead-cvmfs"}
    if configuration.check_permissions:
        options.add("default_permissions")
    filesystem = Filesystem(repository)
    # A thread that decompresses must not hold up the loop, which answers everybody else.
    sys.setswitchinterval(0.0005)
    pyfuse3.init(filesystem, mountpoint, options)
    try:
        before()
        trio.run(filesystem.run, ready)
    finally:
        # Who is root no more cannot unmount; systemd does it then.
        pyfuse3.close(unmount=os.geteuid() == 0)
    if filesystem.ended is not None:
        raise filesystem.ended

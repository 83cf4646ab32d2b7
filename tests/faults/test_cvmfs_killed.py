"""A publisher killed at any step leaves a whole repository, old or new, and the next run goes on from there.

Every step that shows on the disk (a file opened for writing, renamed, removed, a directory made) is announced by Python's audit events. A child
process kills itself with SIGKILL at the first of them, the next child at the second, and so on until one gets to the end.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cvmfs_support import CHUNK, FQRN, make, read_back
from gridstead.cvmfs.digest import Hash
from gridstead.cvmfs.errors import CvmfsError
from gridstead.cvmfs.history import Tag
from gridstead.cvmfs.publish import operations, store
from gridstead.cvmfs.publish.check import check
from gridstead.cvmfs.publish.collect import collect
from gridstead.cvmfs.publish.layout import Layout
from gridstead.cvmfs.publish.repository import Repository

ROOT = Path(__file__).resolve().parent.parent.parent
EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree", "sqlite3.connect"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
#: What a repository shows, and nothing else: no half-written file stays.
PUBLIC = [".cvmfs_master_replica", ".cvmfspublished", ".cvmfswhitelist", "data"]
TAG = Tag("v2", Hash(bytes(20)), 0, 0)


class Trial:
    """One operation, on a repository that is there anew for each try.

    Args:
        top: an empty directory.
        operation: its name.
    """

    def __init__(self, top: Path, operation: str) -> None:
        self.start, self.host = top / "start", top / "host"
        self.operation = operation
        self.layout = Layout(FQRN, self.host)
        self.tree = top / "tree"
        (self.tree / "nested").mkdir(parents=True)
        (self.tree / "nested/.cvmfscatalog").touch()
        (self.tree / "nested/file").write_text("nested\n")
        (self.tree / "file").write_text("first\n")
        (self.tree / "big").write_bytes(bytes(3 * CHUNK))
        if operation == "create":
            make(top / "keys")
            shutil.copytree(top / "keys/etc/cvmfs/keys", self.start / "etc/cvmfs/keys")
            return
        repository = make(self.start)
        operations.publish(repository, self.tree, TAG._replace(name="v1"))
        (self.tree / "nested/new").write_text("new\n")
        (self.tree / "file").unlink()
        if operation in ("gc", "rollback"):
            operations.publish(repository, self.tree)
            (self.tree / "nested/new").write_text("newer\n")
            operations.publish(repository, self.tree)
            (self.tree / "big").write_text("newest\n")
            operations.publish(repository, self.tree)
        if operation in ("publish-transaction", "abort"):
            work = operations.transaction(repository)
            (work / "added").write_text("added\n")
            shutil.rmtree(work / "nested")

    def fresh(self) -> None:
        """Begin anew."""
        shutil.rmtree(self.host, ignore_errors=True)
        shutil.copytree(self.start, self.host, symlinks=True)

    def act(self) -> None:
        """Do it."""
        if self.operation == "create":
            make(self.host)
            return
        repository = Repository(self.layout)
        acts: dict[str, Callable[[], object]] = {
            "publish": lambda: operations.publish(repository, self.tree, TAG),
            "publish-transaction": lambda: operations.publish(repository),
            "transaction": lambda: operations.transaction(repository),
            "abort": lambda: operations.abort(repository),
            "rollback": lambda: operations.rollback(repository, "v1"),
            "tag": lambda: operations.add_tag(repository, "name", "", None),
            "gc": lambda: collect(repository, 1),
            "resign": lambda: operations.resign(repository),
        }
        acts[self.operation]()

    def content(self) -> object:
        """What is published, verified; None when nothing is."""
        if not self.layout.manifest.exists():
            return None
        repository = Repository(self.layout)
        problems = check(repository).problems
        assert not problems, problems
        return read_back(repository)

    def killed(self, step: int) -> bool:
        """Let it be killed at a step; whether there was such a step."""
        child = os.fork()
        if child == 0:
            _die_at(step)
            self.act()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return False
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True

    def again(self) -> None:
        """Do it once more; what was done already may say so."""
        try:
            self.act()
        except CvmfsError as error:
            if not any(text in error.message for text in ("already", "no open transaction", "has an open transaction")):
                raise

    def run(self) -> int:
        """Die at every step, of creating at every third; how many times it died."""
        self.fresh()
        before = self.content()
        self.act()
        after = self.content()
        # Creating has many steps, most of them of making keys.
        for deaths, step in enumerate(itertools.count(step=3 if self.operation == "create" else 1)):
            self.fresh()
            if not self.killed(step):
                return deaths
            assert self.content() in (before, after), step
            self.again()
            assert self.content() == after, step
            assert not list(self.layout.scratch.iterdir()), step
            assert sorted(path.name for path in self.layout.web.iterdir()) == PUBLIC, step
        raise AssertionError


def _die_at(step: int) -> None:
    left = step
    # All of these are alike.
    alike = re.compile(r".*/data/[0-9a-f][1-9a-f]")

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event == "os.mkdir" and alike.fullmatch(str(arguments[0])):
            return
        if event in EVENTS or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(hook)


@pytest.fixture(name="memory")
def _memory(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, where there is one: hundreds of fsyncs take long on a disk."""
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shm) as directory:
        yield Path(directory)


@pytest.mark.parametrize(
    ("operation", "least"),
    [
        ("create", 20), ("publish", 30), ("publish-transaction", 22), ("transaction", 16), ("abort", 16), ("rollback", 18), ("tag", 14),
        ("gc", 25), ("resign", 5),
    ],
)  # fmt: skip
def test_killed_at_its_steps(memory: Path, operation: str, least: int) -> None:
    done = subprocess.run(
        [sys.executable, __file__, memory, operation],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'tools'}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["deaths"] >= least


if __name__ == "__main__":
    # What a killed process has written is there, synced or not; that of the whole machine takes long.
    store._sync = lambda _directory: None
    print(json.dumps({"deaths": Trial(Path(sys.argv[1]), sys.argv[2]).run()}))

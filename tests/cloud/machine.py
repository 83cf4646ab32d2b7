"""The machine the cloud runs in: namespaces of its own over the root file system, with supervisord as process 1.

Everything hangs on process 1: when it ends, the kernel ends all processes, mounts, interfaces and nested network
namespaces with it. So nothing has to be cleaned up piece by piece, and nothing can be forgotten.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cloud.settings import Settings
from gridstead.cluster.command import CommandError, run
from gridstead.cluster.errors import GridsteadError

_INIT = Path(__file__).parent / "config" / "init.sh"
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}


class Machine:
    """The namespaces and their process 1.

    Args:
        settings: of the cloud.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def _holders(self) -> list[int]:
        """The `unshare` processes that hold the machine: one, or none. Found by what they run, so there is no file to go stale."""
        mark = f"\0{self.settings.state}\0".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if words.startswith(b"unshare\0") and mark in words:
                    found.append(int(entry.name))
        return found

    @property
    def pid(self) -> int | None:
        """Process 1 of the machine as this machine sees it; None when it is down."""
        for holder in self._holders():
            try:
                children = Path(f"/proc/{holder}/task/{holder}/children").read_text().split()
            except OSError:
                continue
            if children:
                return int(children[0])
        return None

    @property
    def root(self) -> Path:
        """The root file system as the machine sees it, reached from outside."""
        return Path(f"/proc/{self._running()}/root")

    def started_from(self) -> Path | None:
        """The root file system that the running machine was started from."""
        for holder in self._holders():
            words = Path(f"/proc/{holder}/cmdline").read_bytes().decode().split("\0")
            return Path(words[words.index(str(self.settings.state)) - 1])
        return None

    def _running(self) -> int:
        pid = self.pid
        if pid is None:
            raise GridsteadError("the cloud is down", hint="start it: tests/cloud/cloud up")
        return pid

    def start(self, root: Path) -> None:
        """Start it; returns once process 1 is supervisord.

        Args:
            root: its root file system.

        Raises:
            GridsteadError: it did not start.
        """
        log = self.settings.data / "machine.log"
        namespaces = ["--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--propagation=slave"]
        with log.open("wb") as output:
            holder = subprocess.Popen(
                ["unshare", *namespaces, "bash", str(_INIT), str(root), str(self.settings.state), "end"],
                cwd="/",
                env=_ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if not self._answers(holder):
            self.stop()
            said = log.read_text(errors="replace").strip()[-2000:]
            raise GridsteadError(f"the cloud's machine did not start: {said or 'it said nothing'}")

    @property
    def is_usable(self) -> bool:
        """Whether it runs and supervisord answers; a machine that is just being started is waited for."""
        return self.pid is not None and self._answers()

    def _answers(self, holder: subprocess.Popen[bytes] | None = None) -> bool:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and (holder is None or holder.poll() is None):
            pid = self.pid
            if pid is not None and Path(f"/proc/{pid}/root/run/supervisor.sock").exists():
                return True
            time.sleep(0.1)
        return False

    def stop(self) -> None:
        """End it with all that runs in it; returns once it is gone.

        Raises:
            GridsteadError: a process of it does not end.
        """
        deadline = time.monotonic() + 60
        while holders := self._holders():
            pid = self.pid
            for process in [*holders, *([pid] if pid else [])]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise GridsteadError(f"process {holders[0]} of the cloud does not end")
            time.sleep(0.1)

    def inside(
        self, argv: Sequence[str], *, stdin: str | None = None, timeout: float = 300, environment: Mapping[str, str] | None = None
    ) -> str:
        """Run a program inside, to its end; returns what it wrote.

        Args:
            argv: the program; no secret may be among the arguments.
            stdin: for its standard input.
            timeout: seconds.
            environment: more environment variables; they may be secret.

        Raises:
            CommandError: it failed.
        """
        enter = ["nsenter", "--target", str(self._running()), "--mount", "--pid", "--net", "--uts", "--ipc", "--root", "--wd"]
        try:
            # The environment, not the command line, which every user of the machine could read.
            return run([*enter, *argv], stdin=stdin, timeout=timeout, environment={**_ENVIRONMENT, **(environment or {})})
        except CommandError as error:
            raise CommandError(argv, error.status, error.stderr) from None

    def network(self, *commands: Sequence[str]) -> None:
        """Run this machine's own `ip` in the cloud's network namespace, once per list of arguments."""
        for arguments in commands:
            run(["nsenter", "--target", str(self._running()), "--net", "ip", *arguments])

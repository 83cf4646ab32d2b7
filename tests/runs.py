"""Running the commands of a part of the test-suite: output passed on, results counted, nothing silent, nothing without end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
#: Silence on a long run looks like a hang, to people and to CI: say something after so many seconds.
HEARTBEAT_S = 60.0
#: Seconds for a command that is ended to clean up, before it is killed: the sites of the fault tests go in their fixtures.
END_PATIENCE_S = 180.0
#: Seconds for a clean-up command, whatever became of its part.
CLEAN_LIMIT_S = 420.0
#: Seconds for stacks that were asked for to be written.
STACKS_S = 3.0
#: pytest's closing line: "==== 3 failed, 12 passed, 1 skipped in 4.20s ====", bare with -q.
_PYTEST_END = re.compile(r"^(?:=+ )?((?:\d+ [a-z]+(?:, )?)+) in \d+[.\d]*s(?: \(.*\))?(?: =+)?$")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_output = threading.Lock()


class TimeIsUpError(Exception):
    """A part's time is over; what it runs was ended."""


class StoppedError(Exception):
    """The run is interrupted; what it runs was ended."""


class Worker(threading.Thread):
    """A thread whose end is waited for through an interruption: after one, Python 3.11's join() takes a thread that runs for ended (bpo-45274)."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._ended = threading.Event()

    def run(self) -> None:
        """Run its function."""
        try:
            super().run()
        finally:
            self._ended.set()

    def wait(self) -> None:
        """Wait until it has ended, if it was started."""
        if self.ident is not None:
            self._ended.wait()


@dataclass
class Count:
    """How many checks passed, failed, were skipped."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def add(self, other: Count) -> None:
        """Add another count to this one."""
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def __str__(self) -> str:
        """The plain closing line that CI reads."""
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def count_of(line: str) -> Count | None:
    """What a line says when it is pytest's closing line."""
    match = _PYTEST_END.match(_ANSI.sub("", line).strip())
    if match is None:
        return None
    count = Count()
    for number, word in re.findall(r"(\d+) ([a-z]+)", match[1]):
        if word in {"passed", "xfailed"}:
            count.passed += int(number)
        elif word in {"failed", "error", "errors", "xpassed"}:
            count.failed += int(number)
        elif word == "skipped":
            count.skipped += int(number)
    return count


@dataclass
class Outcome:
    """What came of a part.

    Args:
        part: its name.
        count: its checks.
        failures: what failed, a few words each.
        seconds: how long it took.
        reason: why it did not run, if it did not.
    """

    part: str
    count: Count = field(default_factory=Count)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    reason: str = ""

    @property
    def good(self) -> bool:
        """Whether it passed: a part that checked nothing has not."""
        return not self.failures and not self.count.failed and bool(self.count.passed)

    @property
    def word(self) -> str:
        """``passed``, ``FAILED`` or ``skipped``."""
        if self.good:
            return "passed"
        return "skipped" if self.reason and not self.count.failed else "FAILED"

    @property
    def text(self) -> str:
        """What to tell of it, a line."""
        return self.reason or str(self.count) + (f"; {', '.join(self.failures)}" if self.failures else "")

    def write(self, path: Path) -> None:
        """Leave it for the process that started this one."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Outcome:
        """What a process has left.

        Raises:
            OSError, ValueError: it left nothing, or nothing whole.
        """
        content = json.loads(path.read_text())
        return cls(**{**content, "count": Count(**content["count"])})


@dataclass
class Run:
    """One part's run: its commands go through here. More than one thread may use it.

    Args:
        part: the part's name.
        arguments: what the command line hands on to it.
        limit_s: seconds from now on after which its commands are ended; None for no limit.
        lanes: in a run of several lanes, the directory with a file for each that is at work; None for a part run by itself.
        lane: which of them this part's is.
    """

    part: str
    arguments: tuple[str, ...] = ()
    limit_s: float | None = None
    lanes: Path | None = None
    lane: str | None = None
    count: Count = field(default_factory=Count)
    failures: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    _began: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def alone(self) -> bool:
        """Whether no other lane is at work on this machine now."""
        return self.lanes is None or {path.name for path in self.lanes.iterdir()} <= {self.lane}

    def __call__(
        self, *command: str | Path, cwd: Path = ROOT, title: str = "", env: Mapping[str, str] | None = None, prefix: str = ""
    ) -> bool:
        """Run a command, its output passed on as it comes.

        Args:
            command: the program and its arguments.
            cwd: where to run it.
            title: what to call it, when its first words do not tell.
            env: variables besides this process's own.
            prefix: what to put before each line, where more than one command runs.

        Returns:
            Whether it succeeded.

        Raises:
            TimeIsUpError: the part's time is over.
            StoppedError: ``stop`` was set.
        """
        return self._run(command, cwd, title, env, prefix, self._over, self.stop)

    def clean(self, *command: str | Path, title: str, prefix: str = "") -> None:
        """Run a clean-up command, also when the part's time is over; it counts only when it fails."""
        with contextlib.suppress(TimeIsUpError):  # it has counted as a failure
            self._run(command, ROOT, title, None, prefix, after(CLEAN_LIMIT_S), None, counts=False)

    def fail(self, why: str) -> None:
        """Note a failure that is no command's."""
        with self._lock:
            self.count.failed += 1
            self.failures.append(why)
        say(f"--- {self.part}: FAILED: {why}")

    def _over(self) -> bool:
        return self.limit_s is not None and time.monotonic() > self._began + self.limit_s

    def outcome(self) -> Outcome:
        """What came of it so far."""
        return Outcome(self.part, self.count, self.failures, time.monotonic() - self._began)

    def _run(
        self,
        command: Sequence[str | Path],
        cwd: Path,
        title: str,
        env: Mapping[str, str] | None,
        prefix: str,
        over: Callable[[], bool],
        stop: threading.Event | None,
        *,
        counts: bool = True,
    ) -> bool:
        words = [str(word) for word in command]
        name = title or " ".join(Path(word).name if word.startswith("/") else word for word in words[:4])
        say(f"--- {self.part}: {name}")
        started = time.monotonic()
        told: list[Count] = []

        def tell(line: str) -> None:
            put(f"{prefix}{line}")
            told.extend(filter(None, [count_of(line)]))

        why = ""
        try:
            status = follow(words, tell, name=f"    {self.part}: {name}", cwd=cwd, env=env, over=over, stop=stop)
        except TimeIsUpError:
            why = f"{name} (ended: the time of part {self.part} was over)" if counts else f"{name} (ended after {CLEAN_LIMIT_S:.0f} s)"
            raise
        except BaseException:
            why = f"{name} (interrupted)"
            raise
        else:
            why = f"{name} (exit {status})" if status else ""
        finally:
            # A command that counts nothing is one check. One that failed outside its tests (a collection error, a crash) must show too.
            counted = told[-1] if told else Count(passed=int(not why))
            counted.failed = max(counted.failed, int(bool(why)))
            with self._lock:
                if counts or why:
                    self.count.add(counted)
                self.failures += [why] if why else []
            if why:
                say(f"--- {self.part}: FAILED: {why}, after {time.monotonic() - started:.0f} s")
        return not why


def after(seconds: float) -> Callable[[], bool]:
    """Whether so many seconds from now are over."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def never() -> bool:
    """Whether no time at all is over."""
    return False


def follow(
    words: Sequence[str],
    tell: Callable[[str], None],
    *,
    name: str,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    over: Callable[[], bool] = never,
    stop: threading.Event | None = None,
    patience: float | None = None,
) -> int:
    """Run a program to its end and hand on its lines, and a sign of life where there are none.

    Whatever ends this function early ends the program, too: it is asked first (SIGTERM), and killed with its children when it does
    not end. What it says meanwhile is handed on.

    Args:
        words: the program and its arguments.
        tell: takes each line, with its newline.
        name: what to call it in signs of life.
        cwd: where to run it.
        env: variables besides this process's own.
        over: whether its time is over: then its stacks are told, where it can tell them, and it is ended.
        stop: ends it when set.
        patience: seconds from being asked to being killed.

    Returns:
        Its exit status, negative for a signal.

    Raises:
        TimeIsUpError: it did not end in its time.
        StoppedError: ``stop`` was set.
    """
    process = subprocess.Popen(
        words,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        for line in _lines(process, name, over, stop):
            tell(line)
        return process.wait()
    finally:
        if process.poll() is None:
            _end(process, tell, name, END_PATIENCE_S if patience is None else patience)
        if process.stdout:
            process.stdout.close()


def _end(process: subprocess.Popen[bytes], tell: Callable[[str], None], name: str, patience: float) -> None:
    """End a program with its children: asked first, then killed."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(TimeIsUpError):
        for line in _lines(process, f"{name}, ending", after(patience), None, stacks=False):
            tell(line)
        process.wait(timeout=5)
        return
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


def _lines(
    process: subprocess.Popen[bytes], name: str, over: Callable[[], bool], stop: threading.Event | None, *, stacks: bool = True
) -> Iterator[str]:
    """The child's lines as they come, and a sign of life when none comes.

    The end is the process's, not the pipe's: a daemon that the command left behind may hold the pipe open.
    """
    assert process.stdout is not None, "stdout=PIPE makes it one"
    started = spoke = time.monotonic()
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            ended = process.poll() is not None
            if stop is not None and stop.is_set():
                raise StoppedError
            if not ended and over():
                if not stacks:
                    raise TimeIsUpError
                stacks, over = False, after(STACKS_S)
                yield f"{name}: its time is over after {time.monotonic() - started:.0f} s; where its tests are:\n"
                _ask_for_stacks(process.pid)
            if selector.select(timeout=0 if ended else 1):
                chunk = os.read(process.stdout.fileno(), 65536)
                if not chunk:
                    break
                spoke = time.monotonic()
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    yield line.decode(errors="replace") + "\n"
            elif ended:
                break
            elif time.monotonic() - spoke > HEARTBEAT_S:
                spoke = time.monotonic()
                yield f"{name}: running for {spoke - started:.0f} s\n"
    if rest:
        yield rest.decode(errors="replace") + "\n"
    while process.poll() is None:  # it has closed its output and goes on
        if stop is not None and stop.is_set():
            raise StoppedError
        if over():
            raise TimeIsUpError
        time.sleep(0.05)


def _ask_for_stacks(session: int) -> None:
    """Have every pytest of a session tell where its threads are (see gridstead_plugin)."""
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if int((directory / "stat").read_text().rpartition(")")[2].split()[3]) != session:
                continue
            caught = re.search(r"(?m)^SigCgt:\s*([0-9a-f]+)", (directory / "status").read_text())
            if b"pytest" in (directory / "cmdline").read_bytes() and caught and int(caught[1], 16) >> (signal.SIGUSR1 - 1) & 1:
                os.kill(int(directory.name), signal.SIGUSR1)


def put(line: str) -> None:
    """Pass on a line that has its newline; lines of two threads do not mix."""
    with _output:
        sys.stdout.write(line)
        sys.stdout.flush()


def say(text: str) -> None:
    """Print a line of the runner's own."""
    put(f"{text}\n")


def refuse(message: str) -> NoReturn:
    """End with the exit code of bad input."""
    print(f"test: {message}", file=sys.stderr)
    raise SystemExit(2)

"""What runs, on which node, for how long: shown live on a terminal, as plain lines elsewhere, not at all with -q."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

#: Seconds without a word after which a running step says on a plain terminal that it still runs.
HEARTBEAT = 30.0


class Progress:
    """Steps that start and end, from any thread.

    Args:
        quiet: say nothing.
        verbose: also say what ended without a change.
        console: where to write; stderr, so that stdout stays for results.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.quiet, self.verbose = quiet, verbose
        self._running: dict[int, tuple[str, str, float]] = {}
        self._next = 0
        self._lock = threading.RLock()
        self._began = self._spoke = time.monotonic()
        self._live: Live | None = None
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        if not self.quiet:
            if self.console.is_terminal:
                self._live = Live(console=self.console, refresh_per_second=8, transient=True, get_renderable=self._table)
                self._live.start()
            else:
                threading.Thread(target=self._heartbeat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self._live is not None:
            self._live.stop()
            self._live = None

    @property
    def elapsed(self) -> float:
        """Seconds since the command began."""
        return time.monotonic() - self._began

    def say(self, text: str, *, style: str = "") -> None:
        """A line of its own."""
        if self.quiet:
            return
        with self._lock:
            self._spoke = time.monotonic()
            self.console.print(Text(f"{self.elapsed:6.1f}s  ") + Text(text, style=style))

    @contextmanager
    def step(self, what: str, where: str, *, silent: bool = False) -> Iterator[None]:
        """A step under way.

        Args:
            what: what is done.
            where: to which resource, or on which node.
            silent: no line of its own at its end.
        """
        token = self.start(what, where)
        began = time.monotonic()
        try:
            yield
        except BaseException:
            self.end(token)
            self.say(f"✗ {what} {where} ({time.monotonic() - began:.1f} s)", style="red")
            raise
        self.end(token)
        if not silent:
            self.say(f"✓ {what} {where} ({time.monotonic() - began:.1f} s)", style="green")

    def start(self, what: str, where: str) -> int:
        """Note that something runs; returns the token to end it with."""
        with self._lock:
            self._next += 1
            self._running[self._next] = (what, where, time.monotonic())
            return self._next

    def end(self, token: int) -> None:
        """Note that it ended."""
        with self._lock:
            self._running.pop(token, None)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1))
        with self._lock:
            for what, where, began in list(self._running.values())[-12:]:
                table.add_row(Text("•", style="cyan"), what, Text(where, style="bold"), f"{time.monotonic() - began:.0f} s")
        return table

    def _heartbeat(self) -> None:
        while not self._closed.wait(1.0):
            if time.monotonic() - self._spoke < HEARTBEAT:
                continue
            with self._lock:
                running = list(self._running.values())
            for what, where, began in running[-3:]:
                self.say(f"… {what} {where} ({time.monotonic() - began:.0f} s so far)")
            self._spoke = time.monotonic()


def error_console() -> Console:
    """The console for the one message that ends a failed command."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def result_console() -> Console:
    """The console for results: as wide as the terminal, or wide enough for any table where there is none."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 240)

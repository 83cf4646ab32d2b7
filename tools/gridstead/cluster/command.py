"""Running other programs: with a time limit, and with errors that say what was run and what it answered."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence

from gridstead.cluster.errors import GridsteadError

#: What a shell says of a program that is not there, and so do we.
NOT_FOUND = 127
#: Seconds in which programs that are told to end clean up after themselves.
_CLEAN_UP = 20.0


class CommandError(GridsteadError):
    """A program ended with an error.

    Args:
        argv: what was run.
        status: its exit status; None where it did not end in time.
        stderr: what it said.
    """

    def __init__(self, argv: Sequence[str], status: int | None, stderr: str) -> None:
        self.status, self.stderr = status, stderr.strip()
        how = f"exit {status}" if status is not None else "no answer in time"
        last = "\n".join(self.stderr.splitlines()[-5:])
        super().__init__(f"{shlex.join(argv)[:400]}: {how}: {last or 'it said nothing'}")


def run(
    argv: Sequence[str],
    *,
    timeout: float = 120.0,
    stdin: str | None = None,
    environment: Mapping[str, str] | None = None,
    outlive: bool = False,
) -> str:
    """Run a program to its end.

    Args:
        argv: the program and its arguments; no secret may be among them.
        timeout: seconds until it is ended.
        stdin: text for its standard input.
        environment: all of its environment, where that is not this process's; secrets may be in it.
        outlive: not killed together with this process's group: it comes to its own end.

    Returns:
        What it wrote to standard output.

    Raises:
        CommandError: it ended with an error, did not end in time, or is not installed.
    """
    try:
        done = subprocess.run(
            argv,
            env=environment,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            start_new_session=outlive,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandError(argv, None, (error.stderr or b"").decode(errors="replace")) from None
    except OSError as error:
        raise CommandError(argv, NOT_FOUND, str(error)) from None
    if done.returncode:
        raise CommandError(argv, done.returncode, done.stderr or done.stdout)
    return done.stdout


def run_as_group(argv: Sequence[str], *, timeout: float) -> str:
    """Run a program that may end all of its process group, or would leave parts of itself behind: the group is its own.

    Args:
        argv: the program and its arguments; no secret may be among them.
        timeout: seconds until it is ended, with all that it has started; so it is when we are interrupted.

    Returns:
        What it wrote to standard output.

    Raises:
        CommandError: it ended with an error, did not end in time, or is not installed.
    """
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    except OSError as error:
        raise CommandError(argv, NOT_FOUND, str(error)) from None
    with process:
        try:
            out, said = process.communicate(timeout=timeout)
        except BaseException as error:
            said = _end_group(process)
            if isinstance(error, subprocess.TimeoutExpired):
                raise CommandError(argv, None, said) from None
            raise
    if process.returncode:
        raise CommandError(argv, process.returncode, said or out)
    return out


def _end_group(process: subprocess.Popen[str]) -> str:
    """End a process and its group: asked first. Returns what it said."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=_CLEAN_UP)[1]
    return ""

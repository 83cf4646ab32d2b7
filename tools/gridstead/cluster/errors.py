"""The errors an operator sees: one clear message each, with the exit code that goes with it."""

from __future__ import annotations

from pathlib import Path


class GridsteadError(Exception):
    """Something failed while it was being done (exit code 1).

    Args:
        message: what went wrong, with the values seen.
        hint: what to do about it, one sentence.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class InputError(GridsteadError):
    """The input is wrong; nothing was changed (exit code 2).

    Args:
        message: what is wrong.
        file: the file the value stands in, if it stands in one.
        line: its line, counted from 1.
        key: the dotted key, such as ``nodes.compute.count``.
        hint: what would be right.
    """

    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        file: Path | str | None = None,
        line: int | None = None,
        key: str | None = None,
        hint: str | None = None,
    ) -> None:
        where = ""
        if file is not None:
            where = f"{file}:{line}: " if line is not None else f"{file}: "
        if key:
            where += f"{key}: "
        super().__init__(where + message, hint=hint)
        self.file, self.line, self.key = file, line, key


class PreflightError(GridsteadError):
    """The machine or cloud cannot carry the plan; nothing was changed (exit code 1)."""


class StepError(GridsteadError):
    """One or more steps of a plan failed; the others went on (exit code 1)."""


class RepairError(GridsteadError):
    """Nodes were left as they are, because repairing them is the operator's decision; all else was done (exit code 1)."""

"""The test command's inside, which ``tools/test`` starts in the virtual environment: one part here, several in lanes."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import one_run
import skips
from lanes import STAGES, VARIABLE, Whole, cannot
from parts import PARTS, Part, why_not
from runs import ROOT, Count, Outcome, Run, TimeIsUpError, refuse, say

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def run_part(part: Part, arguments: Sequence[str], outcomes: list[Outcome]) -> None:
    """Run one part in this process; what came of it goes to ``outcomes``, however it ends."""
    reason = why_not(part, ())
    if reason:  # asked for by name, it must not pass for done
        outcomes.append(cannot(part, reason, must=True))
        return
    lanes = os.environ.get(VARIABLE)
    run = Run(part.name, tuple(arguments), part.limit_s, Path(lanes) if lanes else None, part.lane)
    try:
        part.run(run)
    except TimeIsUpError:
        pass  # told, counted, and what it had made taken down
    except BaseException as error:
        run.count.failed += 1
        run.failures.append("interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}")
        raise
    finally:
        outcomes.append(run.outcome())


def run_all(wanted: Mapping[str, Sequence[str]]) -> int:
    """Run parts, and print what came of each and, last, of all; the exit status."""
    outcomes: list[Outcome] = []
    started = time.monotonic()
    whole = Whole(wanted) if len(wanted) > 1 else None
    try:
        if whole:
            outcomes = whole.outcomes
            whole.run()
        else:
            for name, arguments in wanted.items():
                say(f"=== {name}: {PARTS[name].text}")
                run_part(PARTS[name], arguments, outcomes)
    finally:
        total = Count()
        say(f"\n{'':8} {'part':14} {'time':>8} checks")
        for outcome in outcomes:
            total.add(outcome.count)
            say(f"{outcome.word:8} {outcome.part:14} {outcome.seconds:6.0f} s {outcome.text}")
            if not outcome.good and outcome.word == "FAILED" and not outcome.count.failed:
                total.failed += 1
        say(f"all parts: {time.monotonic() - started:.0f} s")
        say(str(total))
    return 1 if any(outcome.word == "FAILED" for outcome in outcomes) else 0


def listing() -> str:
    """The parts, each with what it does, and with which others it runs in a whole run."""
    lines = [f"{'part':14} {'lane':10} what it does"]
    lines += [f"{part.name:14} {part.lane or '-':10} {part.text}" for part in PARTS.values()]
    stages = "; then ".join(" beside ".join(stage) for stage in STAGES)
    return "\n".join([*lines, "", f"Without a part all that have a lane run: {stages}. One by its name alone: tools/test PART."])


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="tools/test", description="Run the test-suite: all of it, cheapest first, or the part named.")
    parser.add_argument("part", nargs="?", help="a part; without it, all that --list shows with a lane")
    parser.add_argument(
        "argument",
        nargs=argparse.REMAINDER,
        help="handed on to the part: role names to molecule, pytest's arguments to the others",
    )
    parser.add_argument("--list", action="store_true", help="name the parts")
    parser.add_argument(
        "--changed",
        nargs="?",
        const="",
        metavar="COMMIT",
        help="only the parts that concern what has changed since this branch left COMMIT (default: its upstream, or main)",
    )
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)  # where a lane's part leaves what came of it
    options = parser.parse_args()
    if options.list:
        say(listing())
        return 0
    if options.part and options.changed is not None:
        refuse("a part and --changed exclude each other; right would be one of them")
    if options.part and options.part not in PARTS:
        refuse(f"no part {options.part!r}; there are: {', '.join(PARTS)}")
    os.chdir(ROOT)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    os.environ["PYTHONUNBUFFERED"] = "1"
    if not sys.stdout.isatty():
        os.environ["NO_COLOR"] = "1"
    # CI's time-out and a closed terminal end the run as Ctrl-C does: through every `finally`.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    wanted = _wanted(options.part, options.argument, options.changed)
    if not wanted:
        say("nothing has changed that a test concerns")
        return 0
    outcomes: list[Outcome] = []
    try:
        if options.result:
            # A part of a run that holds the locks and adds up.
            try:
                run_part(PARTS[options.part], options.argument, outcomes)
            finally:
                outcomes[-1].write(options.result)
            return 0 if outcomes[-1].word != "FAILED" else 1
        with one_run.holding(*_places(wanted)):
            return run_all(wanted)
    except one_run.TakenError as error:
        refuse(str(error))
    except KeyboardInterrupt:
        say("test: interrupted")
        return 130


def _wanted(part: str | None, arguments: Sequence[str], since: str | None) -> dict[str, list[str]]:
    """The parts to run, each with its arguments."""
    if part:
        return {part: list(arguments)}
    everything: dict[str, list[str]] = {name: [] for name, known in PARTS.items() if known.lane}
    if since is None:
        os.environ[skips.VARIABLE] = "1"
        return everything
    import selection

    try:
        found = selection.changed(since or None)
    except LookupError as error:
        refuse(f"--changed {since}: {error}")
    if found is None:
        say("--changed: no common ancestor with upstream or main to compare with; all parts")
        return everything
    paths, ancestor = found
    wanted = selection.select(paths)
    say(f"--changed: {len(paths)} paths differ from {ancestor[:12]}: {', '.join(wanted) or 'no part'}")
    return wanted


def _places(wanted: Mapping[str, Sequence[str]]) -> list[Path]:
    """What a run must have for itself on this machine; who may not make nodes needs nothing."""
    parts = [PARTS[name] for name in wanted] if os.geteuid() == 0 else []
    places = [one_run.data()] if any(part.nodes for part in parts) else []
    return places + ([one_run.cloud_data()] if any(part.cloud for part in parts) else [])


def _interrupt(_number: int, _frame: object) -> NoReturn:
    # Once: a second signal must not cut the clean-up short.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

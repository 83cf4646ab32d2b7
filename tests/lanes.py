"""Several parts in one run: stage after stage, the lanes of a stage side by side, the parts of a lane one after the other.

A part is a child process (parts set variables of their environment and may not share one), whose lines are passed on with its name
before them and kept in a log of its own. What came of it, the child leaves in a file.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from parts import PARTS, Part, why_not
from runs import Count, Outcome, StoppedError, TimeIsUpError, Worker, follow, put, say

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: What may run beside what. Unit tests and lint come first, beside an image that may have to be built: they tell most in the least
#: time. The two long lanes leave each other processors: one waits for a cloud's services, the other for nodes. What must have the
#: machine's podman for itself comes last.
STAGES = (("quick", "image"), ("cloud", "containers"), ("alone",))
#: Seconds after which a run of several parts is ended: CI ends it, with no word of what it found, after 90 minutes.
LIMIT_S = 78 * 60.0
#: Seconds for a part, once it is asked to end, to take down what it has made; also how far it may pass its own limit.
GRACE_S = 480.0
#: Names, for a part, the directory with a file for each lane that is at work.
VARIABLE = "GRIDSTEAD_TEST_LANES"


@dataclass
class Whole:
    """A run of several parts.

    Args:
        wanted: the parts' names, each with the arguments that are handed on to it.
        program: what runs one part.
        limit_s: seconds after which all that still runs is ended.
    """

    wanted: Mapping[str, Sequence[str]]
    program: Sequence[str] = field(default_factory=lambda: (sys.executable, sys.argv[0]))
    limit_s: float = LIMIT_S
    outcomes: list[Outcome] = field(default_factory=list)
    _scratch: Path = field(default_factory=Path)
    _logs: Path = field(default_factory=Path)
    _deadline: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> list[Outcome]:
        """Run them all; what came of each, in the order in which they ended.

        A part that cannot run without one that failed fails at once. Interrupted, it ends those that run, each by its own way out;
        what came of those that ran is in ``outcomes`` then, too.
        """
        self._deadline = time.monotonic() + self.limit_s
        artifacts = os.environ.get("CI_ARTIFACTS")
        self._logs = Path(artifacts) if artifacts else Path(tempfile.mkdtemp(prefix="gridstead-test-logs-"))
        self._logs.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(prefix="gridstead-lanes-") as scratch:
                self._scratch = Path(scratch)
                (self._scratch / "at-work").mkdir()
                for stage in STAGES:
                    self._stage(
                        {lane: [part for part in PARTS.values() if part.name in self.wanted and part.lane == lane] for lane in stage}
                    )
        finally:
            if artifacts or any(outcome.word == "FAILED" for outcome in self.outcomes):
                say(f"each part's own log: {self._logs}")
            else:
                shutil.rmtree(self._logs)
        return self.outcomes

    def _stage(self, lanes: Mapping[str, Sequence[Part]]) -> None:
        threads = [Worker(target=self._lane, args=[lane, parts], name=lane) for lane, parts in lanes.items() if parts]
        for thread in threads:
            (self._scratch / "at-work" / thread.name).touch()
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.wait()
        except BaseException:
            self._stop.set()
            raise
        finally:
            for thread in threads:
                thread.wait()

    def _lane(self, lane: str, parts: Sequence[Part]) -> None:
        try:
            for part in parts:
                if not self._stop.is_set():
                    outcome = self._part(part)
                    self.outcomes.append(outcome)
                    say(f"=== {part.name}: {outcome.word} in {outcome.seconds:.0f} s: {outcome.text}")
        finally:
            (self._scratch / "at-work" / lane).unlink()

    def _part(self, part: Part) -> Outcome:
        failed = [outcome.part for outcome in self.outcomes if outcome.word == "FAILED"]
        reason = why_not(part, failed)
        if reason:
            return cannot(part, reason, must="image" in failed)
        say(f"=== {part.name}: {part.text}")
        result = self._scratch / f"{part.name}.json"
        began = time.monotonic()
        # Its own limit is the part's own business; this is for a part that is past minding it.
        end = min([self._deadline, *([began + part.limit_s + GRACE_S] if part.limit_s else [])])
        with (self._logs / f"{part.name}.log").open("w") as log:

            def tell(line: str) -> None:
                put(f"{part.name}: {line}")
                log.write(line)
                log.flush()

            try:
                status = follow(
                    [*self.program, "--result", str(result), part.name, *self.wanted[part.name]],
                    tell,
                    name=part.name,
                    env={VARIABLE: str(self._scratch / "at-work")},
                    over=lambda: time.monotonic() > end,
                    stop=self._stop,
                    patience=GRACE_S,
                )
                ended = f"exit {status}" if status else ""
            except TimeIsUpError:
                ended = "ended: the time of the whole run was over"
            except StoppedError:
                ended = "interrupted"
        try:
            outcome = Outcome.read(result)
        except (OSError, ValueError, TypeError):
            outcome = Outcome(part.name, Count(failed=1), ["left no result"])
        if ended and outcome.word != "FAILED":
            outcome.count.failed += 1
            outcome.failures.append(ended)
        outcome.seconds = time.monotonic() - began
        return outcome


def cannot(part: Part, reason: str, *, must: bool) -> Outcome:
    """What came of a part that cannot run here; where it must, or in CI, it must not pass for done."""
    must = must or os.environ.get("CI") == "true"
    return Outcome(part.name, Count(failed=1) if must else Count(skipped=1), reason=reason)

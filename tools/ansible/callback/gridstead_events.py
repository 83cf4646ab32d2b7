"""Ansible callback: one JSON line an event, to the file descriptor in $GRIDSTEAD_EVENTS."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from ansible.executor.stats import AggregateStats
from ansible.executor.task_result import CallbackTaskResult
from ansible.playbook.play import Play
from ansible.playbook.task import Task
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: gridstead_events
type: notification
short_description: Task events as JSON lines
description:
  - Writes what starts, what changed, what failed and the final counters to the file descriptor that the environment
    variable E(GRIDSTEAD_EVENTS) names. C(tools/cluster) reads it to show progress and failures.
  - At the start of each play it waits for a line from the file descriptor that E(GRIDSTEAD_GATE) names; at its end, Ansible ends.
requirements:
  - needs enabling, which C(tools/cluster) does
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]  # ansible-core has no type information
    """See DOCUMENTATION."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "gridstead_events"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._began: dict[tuple[str, str], float] = {}
        events, gate = os.environ.get("GRIDSTEAD_EVENTS"), os.environ.get("GRIDSTEAD_GATE")
        self._stream = self._gate = None
        if events is None or gate is None:
            self.disabled = True
            return
        # A background ssh must not inherit them: the reader would wait for that to end.
        for descriptor in (events, gate):
            os.set_inheritable(int(descriptor), False)
        self._stream = os.fdopen(int(events), "w", buffering=1)
        self._gate = os.fdopen(int(gate))

    def _emit(self, event: str, **data: Any) -> None:
        if self._stream is not None:
            self._stream.write(json.dumps({"event": event, **data}) + "\n")

    def v2_playbook_on_play_start(self, play: Play) -> None:
        """A play is about to start: as soon as the reader says so, or never."""
        self._emit("play", play=play.get_name())
        if self._gate is not None and not self._gate.readline():
            # Ansible takes other exceptions of a callback for a warning.
            raise KeyboardInterrupt

    def v2_playbook_on_task_start(self, task: Task, is_conditional: bool) -> None:  # noqa: ARG002 - Ansible passes it by name
        """A task starts."""
        self._emit("task", task=task.get_name())

    def v2_playbook_on_handler_task_start(self, task: Task) -> None:
        """A handler starts."""
        self._emit("task", task=task.get_name())

    def v2_runner_on_start(self, host: Any, task: Task) -> None:
        """A task starts on a host."""
        self._began[host.get_name(), task.get_path() or task.get_name()] = time.monotonic()

    def _result(self, event: str, result: CallbackTaskResult, **data: Any) -> None:
        host, task = result.host.get_name(), result.task
        seconds = time.monotonic() - self._began.pop((host, task.get_path() or task.get_name()), time.monotonic())
        self._emit(event, host=host, task=task.get_name(), seconds=round(seconds, 2), **data)

    def v2_runner_on_ok(self, result: CallbackTaskResult) -> None:
        """A task ended well."""
        self._result("changed" if result.result.get("changed") else "ok", result)

    def v2_runner_on_failed(self, result: CallbackTaskResult, ignore_errors: bool = False) -> None:
        """A task failed."""
        if not ignore_errors:
            self._result("failed", result, message=_message(result.result))

    def v2_runner_on_unreachable(self, result: CallbackTaskResult) -> None:
        """A host did not answer."""
        self._result("unreachable", result, message=_message(result.result))

    def v2_playbook_on_stats(self, stats: AggregateStats) -> None:
        """The end: counters by host."""
        self._emit("stats", hosts={host: stats.summarize(host) for host in sorted(stats.processed)})


def _message(result: dict[str, Any]) -> str:
    """What a failed task said, from the places where modules put it; loops say it in each item."""
    items = [item for item in result.get("results", ()) if isinstance(item, dict) and (item.get("failed") or item.get("unreachable"))]
    if items:
        return "\n".join(f"{_label(item)}: {_message(item)}" for item in items)
    parts = [str(result.get(key, "")).strip() for key in ("msg", "stderr", "module_stderr", "reason")]
    if not result.get("stderr"):
        parts.append(str(result.get("stdout", "")).strip())
    seen: list[str] = []
    for part in parts:
        if part and part not in seen:
            seen.append(part)
    return "\n".join(seen) or "failed without a message"


def _label(item: dict[str, Any]) -> str:
    """What a loop's item is called: the label its author gave, or the item itself where that is short."""
    label = item.get("_ansible_item_label", item.get("item", ""))
    if isinstance(label, dict):
        label = next((label[key] for key in ("name", "path", "dest", "item") if key in label), label)
    return str(label)[:80]

#!/usr/bin/python
"""Ansible module: empties Slurm nodes that leave, and lets nodes that stay after all take jobs again."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: slurm_drain
short_description: Empty Slurm nodes that leave
description:
  - Nodes that leave take no new jobs. Jobs that run there may end. When the patience is over, what still runs is put back into the queue; jobs that
    cannot be (interactive ones, and those of C(sbatch --no-requeue)) are cancelled, or left, and then the module fails.
  - Their owners are told at once how long they have (C(scontrol notify), which srun and salloc print).
  - Nodes that Slurm does not know have nothing to be emptied of.
  - A Slurm that does not answer knows nothing. Nodes count as empty only when squeue has said so.
  - With C(state=resumed), nodes that this module drained take jobs again. Those that somebody else drained stay drained.
  - With C(state=vacated), only nodes on which nothing runs take no new jobs; one that got a job first goes on taking jobs. Nobody waits.
options:
  nodes:
    description: Names of nodes, as Slurm has them.
    type: list
    elements: str
    required: true
  state:
    description: Whether they leave.
    type: str
    choices: [drained, resumed, vacated]
    default: drained
  patience:
    description: Seconds for which jobs may go on.
    type: int
    default: 300
  cancel:
    description: Cancel what runs when the patience is over and cannot be put back into the queue.
    type: bool
    default: true
author: Gridstead
"""

EXAMPLES = r"""
- name: Empty a node that leaves
  slurm_drain:
    nodes: [compute003]
    patience: 3600
"""

RETURN = r"""
answered:
  description: Whether slurmctld answered. Without an answer nothing was done, and nothing is known.
  type: bool
  returned: always
reason:
  description: What Slurm's commands said when slurmctld did not answer.
  type: str
  returned: always
actions:
  description: What was done, one line each.
  type: list
  elements: str
  returned: always
"""

#: Why a node is drained; by this the module knows the nodes that it drained, and so does the controller (gridstead.cluster.slurm).
REASON = "leaves the cluster"
#: States in which a job has something on its nodes.
STATES = "running,completing,suspended,configuring,stopped,signaling,stage_out,resizing"
#: Seconds between two looks at the queue, and in which slurmctld must answer at the beginning: it may just be restarted.
PAUSE = 2.0
ANSWER = 15.0
#: Seconds in which jobs that were ended must be gone, before their nodes are set down, which ends them in slurmctld's books too.
END = 90.0
#: Seconds after which a command is given up. Slurm's own commands do that by themselves, but for a machine that hangs.
COMMAND = 120.0


class DrainError(Exception):
    """One clear line for the operator."""


class NoAnswerError(Exception):
    """slurmctld does not answer, as the command said it."""


class Job(NamedTuple):
    """A job that has something on a node that leaves."""

    number: str
    state: str
    user: str
    name: str

    def __str__(self) -> str:
        """As messages name it."""
        return f"job {self.number} ({self.name}) of {self.user}"


def ask(*argv: str) -> str:
    """What a Slurm command prints.

    Raises:
        NoAnswerError: it fails.
    """
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoAnswerError(str(error)) from None
    if done.returncode:
        raise NoAnswerError((done.stderr.strip() or done.stdout.strip() or f"{argv[0]}: exit {done.returncode}").splitlines()[-1])
    return done.stdout


def parse_jobs(text: str) -> list[Job]:
    r"""Jobs from ``squeue --format=%A|%T|%u|%j``.

    >>> parse_jobs("12|RUNNING|alice|a|b\n")
    [Job(number='12', state='RUNNING', user='alice', name='a|b')]
    """
    return [Job(*line.split("|", 3)) for line in text.splitlines() if line]


class Drain:
    """Empties nodes."""

    def __init__(self, nodes: list[str], patience: float, *, cancel: bool) -> None:
        self.wanted = nodes
        self.nodes: list[str] = []
        self.patience = patience
        self.cancel = cancel
        self.actions: list[str] = []

    def known(self, seconds: float = ANSWER) -> dict[str, tuple[str, str]]:
        """The nodes among the wanted ones that Slurm knows, with the state of each and the reason for which it is drained or down.

        Raises:
            NoAnswerError: no answer for so many seconds.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                # It fails at once where the other commands would try on for half a minute.
                ask("scontrol", "ping")
                break
            except NoAnswerError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(PAUSE)
        lines = [line.split("|", 2) for line in ask("sinfo", "--noheader", "--all", "--Node", "--format=%N|%T|%E").splitlines()]
        return {name: (state, reason) for name, state, reason in lines if name in self.wanted}

    def empty(self) -> None:
        """Drain the nodes and wait until nothing runs there.

        Raises:
            NoAnswerError: slurmctld does not answer at all; nothing was done.
            DrainError: something still runs there, or nobody knows.
        """
        known = self.known()
        self.nodes = sorted(known)
        # What somebody else drained keeps the reason for that, and stays drained if it does not leave after all.
        if fresh := sorted(name for name, (state, _) in known.items() if not state.startswith("drain")):
            self._update("drain", fresh)
            self.actions.append(f"{', '.join(fresh)}: no new jobs")
        if not self.nodes:
            return
        left = self._wait(self.patience, notify=True)
        if not left:
            return
        refused = self._end(left, self._requeue)
        if self.cancel:
            refused = self._end(refused, self._cancel)
        if refused:
            jobs = "; ".join(f"{job}: {why}" for job, why in refused.items())
            raise DrainError(
                f"{', '.join(self.nodes)}: these jobs still run after {self.patience:g} s and cannot be put back into the queue: {jobs}. The nodes take "
                "no new jobs and are not removed. Wait for the jobs, cancel them (scancel), or set drain_cancel, and run again; "
                f"`scontrol update nodename={','.join(self.nodes)} state=resume` has the nodes take jobs again."
            )
        if self._wait(END):
            # A node that does not answer cannot say that a job has ended there.
            self._update("down", self.nodes)
            self.actions.append(f"{', '.join(self.nodes)}: set down, as jobs do not end there")
            if left := self._wait(END):
                raise DrainError(f"{', '.join(self.nodes)}: Slurm does not get rid of {', '.join(map(str, left))}")

    def resume(self) -> None:
        """Have nodes that this module drained take jobs again.

        Raises:
            NoAnswerError: slurmctld does not answer.
        """
        self.nodes = sorted(name for name, (_, reason) in self.known().items() if reason == REASON)
        if self.nodes:
            ask("scontrol", "update", f"nodename={','.join(self.nodes)}", "state=resume")
            self.actions.append(f"{', '.join(self.nodes)}: takes jobs again")

    def vacate(self) -> None:
        """Drain those of the nodes on which nothing runs.

        Raises:
            NoAnswerError: slurmctld does not answer.
        """
        self.nodes = sorted(name for name, (state, _) in self.known().items() if not state.startswith("drain"))
        if not self.nodes:
            return
        # From here on no job starts there: what runs now is what got there first.
        self._update("drain", self.nodes)
        busy = sorted(name for name, (state, _) in self.known().items() if name in self.nodes and not state.startswith("drained"))
        if busy:
            ask("scontrol", "update", f"nodename={','.join(busy)}", "state=resume")
        if empty := sorted(set(self.nodes).difference(busy)):
            self.actions.append(f"{', '.join(empty)}: no new jobs")

    @staticmethod
    def _update(state: str, nodes: list[str]) -> None:
        ask("scontrol", "update", f"nodename={','.join(nodes)}", f"state={state}", f"reason={REASON}")

    def _jobs(self) -> list[Job]:
        return parse_jobs(
            ask("squeue", "--noheader", "--all", f"--nodelist={','.join(self.nodes)}", f"--states={STATES}", "--format=%A|%T|%u|%j")
        )

    def _wait(self, seconds: float, *, notify: bool = False) -> list[Job]:
        """Wait until no job has anything on the nodes; returns those that still have.

        Raises:
            DrainError: squeue does not answer when the time is over: what runs is unknown.
        """
        deadline = time.monotonic() + seconds
        told: set[str] = set()
        while True:
            try:
                jobs, silence = self._jobs(), ""
            except NoAnswerError as error:
                jobs, silence = [], str(error)
            if not jobs and not silence:
                return []
            if notify:
                for job in jobs:
                    if job.number not in told:
                        told.add(job.number)
                        self._tell(job, seconds)
            if time.monotonic() >= deadline:
                if silence:
                    raise DrainError(
                        f"whether jobs still run on {', '.join(self.nodes)} is unknown: {silence}. The nodes are not removed; "
                        "run again when slurmctld answers (`systemctl status slurmctld` on the controller)."
                    )
                return jobs
            time.sleep(max(0.0, min(PAUSE, deadline - time.monotonic())))

    @staticmethod
    def _tell(job: Job, seconds: float) -> None:
        """A word to who sits before the job; a batch job has nobody there, and to some nothing can be said."""
        try:
            ask(
                "scontrol",
                "notify",
                job.number,
                f"This node leaves the cluster. The job has {seconds:g} seconds to end, then it is put back into the queue, or else cancelled.",
            )
        except NoAnswerError:
            return

    def _end(self, jobs: Iterable[Job], how: Callable[[Job], str]) -> dict[Job, str]:
        """End jobs in one way or another; returns those that still run, each with the reason. One that is no more had ended by itself."""
        refused = {job.number: why for job in jobs if job.state != "COMPLETING" and (why := how(job))}
        if not refused:
            return {}
        return {job: refused[job.number] for job in self._jobs() if job.number in refused and job.state != "COMPLETING"}

    def _requeue(self, job: Job) -> str:
        """Put a job back into the queue; returns why that cannot be done."""
        try:
            ask("scontrol", "requeue", job.number)
        except NoAnswerError as error:
            return str(error)
        self.actions.append(f"{job}: back into the queue")
        return ""

    def _cancel(self, job: Job) -> str:
        """Cancel a job; returns why that cannot be done."""
        try:
            ask("scancel", job.number)
        except NoAnswerError as error:
            return str(error)
        self.actions.append(f"{job}: cancelled, as it cannot be put back into the queue")
        return ""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "nodes": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": ["drained", "resumed", "vacated"], "default": "drained"},
            "patience": {"type": "int", "default": 300},
            "cancel": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    drain = Drain(module.params["nodes"], module.params["patience"], cancel=module.params["cancel"])
    if module.check_mode:
        module.exit_json(changed=False, answered=True, reason="", actions=[])
    try:
        {"drained": drain.empty, "resumed": drain.resume, "vacated": drain.vacate}[module.params["state"]]()
    except NoAnswerError as error:
        module.exit_json(changed=bool(drain.actions), answered=False, reason=str(error), actions=drain.actions)
    except DrainError as error:
        module.fail_json(msg=str(error), answered=True, reason="", actions=drain.actions, changed=bool(drain.actions))
    module.exit_json(changed=bool(drain.actions), answered=True, reason="", actions=drain.actions)


if __name__ == "__main__":
    main()

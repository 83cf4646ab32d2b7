#!/usr/bin/python3
"""Slurm's state as Prometheus metrics: Debian packages no exporter for it.

Asks sinfo, squeue and sdiag when Prometheus asks, at most every few seconds.
usage: slurm-exporter [PORT]
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: Seconds for which an answer is good: several askers cost slurmctld no more than one.
FRESH = 5.0
#: Seconds after which a command is given up: less than the 10 s that Prometheus waits for an answer.
PATIENCE = 5.0
#: A line of sdiag to the metric it becomes.
STATISTICS = {
    "Jobs submitted": ("slurm_jobs_total", 'event="submitted"'),
    "Jobs started": ("slurm_jobs_total", 'event="started"'),
    "Jobs completed": ("slurm_jobs_total", 'event="completed"'),
    "Jobs canceled": ("slurm_jobs_total", 'event="cancelled"'),
    "Jobs failed": ("slurm_jobs_total", 'event="failed"'),
    "Server thread count": ("slurm_server_threads", ""),
    "Agent queue size": ("slurm_agent_queue", ""),
    "DBD Agent queue size": ("slurm_dbd_agent_queue", ""),
}
HELP = {
    "slurm_up": ("gauge", "1 when slurmctld answers"),
    "slurm_node": ("gauge", "1 for the state a node is in"),
    "slurm_node_cpus": ("gauge", "CPUs of a node by state"),
    "slurm_partition_nodes": ("gauge", "Nodes of a partition by state"),
    "slurm_jobs": ("gauge", "Jobs in the queue by partition and state"),
    "slurm_jobs_total": ("counter", "Jobs that Slurm has seen since its statistics were reset (at midnight UTC and when slurmctld starts)"),
    "slurm_server_threads": ("gauge", "Active threads of slurmctld"),
    "slurm_agent_queue": ("gauge", "Messages that slurmctld has yet to send to nodes"),
    "slurm_dbd_agent_queue": ("gauge", "Messages that slurmctld has yet to send to slurmdbd"),
}
Metrics = dict[tuple[str, str], float]


def run(*command: str) -> list[str]:
    """Lines a Slurm command prints."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=True)
    return done.stdout.splitlines()


def labels(**values: str) -> str:
    """Labels in Prometheus' notation."""
    quoted = {name: value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for name, value in values.items()}
    return ",".join(f'{name}="{value}"' for name, value in quoted.items())


def nodes(lines: list[str]) -> Metrics:
    """Nodes and partitions, from ``sinfo --Node --format=%N|%R|%T|%C``: a line for each node in each partition."""
    found: Metrics = {}
    for line in lines:
        name, partition, raw, cpus = line.split("|")
        # The state's suffix is a flag: * not answering, ~ # ! % power saving, $ @ ^ reserved or to be rebooted, - planned.
        state = raw.rstrip("*~#!%$@^-")
        found["slurm_node", labels(node=name, state=state)] = 1
        key = ("slurm_partition_nodes", labels(partition=partition, state=state))
        found[key] = found.get(key, 0) + 1
        for what, count in zip(("allocated", "idle", "other"), cpus.split("/"), strict=False):
            found["slurm_node_cpus", labels(node=name, state=what)] = float(count)
    return found


def jobs(lines: list[str], partitions: set[str]) -> Metrics:
    """Jobs in the queue, from ``squeue --format=%P|%T``. Partitions without jobs show zeros: a line that ends is harder to read than one at 0."""
    found: Metrics = {("slurm_jobs", labels(partition=name, state=state)): 0 for name in partitions for state in ("pending", "running")}
    for (partition, state), count in Counter(tuple(line.split("|")) for line in lines).items():
        found["slurm_jobs", labels(partition=partition, state=state.lower())] = count
    return found


def statistics(lines: list[str]) -> Metrics:
    """Counters of slurmctld, from ``sdiag``."""
    found: Metrics = {}
    for line in lines:
        match = re.fullmatch(r"\s*([A-Za-z ]+?):\s*(\d+)", line)
        if match and match[1] in STATISTICS:
            found[STATISTICS[match[1]]] = float(match[2])
    return found


def collect() -> Metrics:
    """All metrics; only slurm_up = 0 when slurmctld does not answer."""
    try:
        rows = run("sinfo", "--noheader", "--all", "--Node", "--format=%N|%R|%T|%C")
        found = nodes(rows)
        found |= jobs(run("squeue", "--noheader", "--all", "--format=%P|%T"), {row.split("|")[1] for row in rows})
        found |= statistics(run("sdiag"))
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        print(f"slurmctld does not answer: {str(reason).strip()}", file=sys.stderr, flush=True)
        return {("slurm_up", ""): 0}
    return {("slurm_up", ""): 1.0, **found}


def text(metrics: Metrics) -> str:
    """Metrics in Prometheus' text format."""
    lines = []
    for name, (kind, meaning) in HELP.items():
        rows = [(key[1], value) for key, value in metrics.items() if key[0] == name]
        if rows:
            lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{{{tags}}} {value:g}" if tags else f"{name} {value:g}" for tags, value in rows]
    return "\n".join(lines) + "\n"


class Handler(BaseHTTPRequestHandler):
    """Answers GET /metrics."""

    lock = threading.Lock()
    answer = b""
    asked = float("-inf")

    def do_GET(self) -> None:
        """Answer with metrics no older than FRESH."""
        if self.path != "/metrics":
            self.send_error(404, "The metrics are at /metrics")
            return
        with Handler.lock:
            if time.monotonic() - Handler.asked > FRESH:
                Handler.answer = text(collect()).encode()
                Handler.asked = time.monotonic()
            answer = Handler.answer
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's signature
        """Say nothing: a line for each scrape is of no use."""


if __name__ == "__main__":
    ThreadingHTTPServer(("", int(sys.argv[1]) if len(sys.argv) > 1 else 9341), Handler).serve_forever()

"""How long things take, on a site of the bench's own; `tools/test bench site` runs it.

Every time stands beside its floor: what the same machine needs for the part that nobody can save. Prints a Markdown
table for README and writes all single values to .cache/bench-site.json.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_results import keep
from support import ROOT, Site, cluster

NAME = "gridstead-bench"
ROUNDS = 7
BURST = 50

#: One hello job through the CE, as a user of the frontend: seconds from arcsub to FINISHED.
ARC_ONE = """
cd "$(mktemp -d)"
echo '&(executable="/bin/hostname")(stdout="out")(jobname="bench")' >job.xrsl
began=$EPOCHREALTIME
id=$(arcsub -C file://localhost -T org.nordugrid.internal -Q NONE -j jobs job.xrsl 2>/dev/null | sed -n 's/.*jobid: *//p')
until arcstat -j jobs "$id" 2>/dev/null | grep -qE 'State: *(Finished|Failed)'; do sleep 0.1; done
arcstat -j jobs "$id" 2>/dev/null | grep -q 'State: *Finished' || { arcstat -l -j jobs "$id"; exit 1; }
echo "$began $EPOCHREALTIME"
"""
ARC_MANY = f"""
cd "$(mktemp -d)"
for n in $(seq {BURST}); do echo '&(executable="/bin/hostname")(stdout="out")(jobname="bench")' >$n.xrsl; done
began=$EPOCHREALTIME
arcsub -C file://localhost -T org.nordugrid.internal -Q NONE -j jobs *.xrsl >/dev/null 2>&1
until [ "$(arcstat -a -j jobs 2>/dev/null | grep -cE 'State: *(Finished|Failed)')" = {BURST} ]; do sleep 0.3; done
[ "$(arcstat -a -j jobs 2>/dev/null | grep -c 'State: *Finished')" = {BURST} ] || exit 1
echo "$began $EPOCHREALTIME"
"""
SLURM_ONE = """
cd "$(mktemp -d)"
began=$EPOCHREALTIME; sbatch --wait --quiet --output=out --wrap=hostname; echo "$began $EPOCHREALTIME"
"""
SLURM_MANY = f"""
cd "$(mktemp -d)"
began=$EPOCHREALTIME
for n in $(seq {BURST}); do sbatch --quiet --output=out.$n --wrap=hostname; done
sbatch --wait --quiet --dependency=singleton --job-name=wrap --output=last --wrap=true
echo "$began $EPOCHREALTIME"
"""


@dataclass
class Row:
    """One measurement."""

    what: str
    seconds: list[float]
    aim: float | None = None
    floor: str = ""

    @property
    def median(self) -> float:
        """The middle one of the rounds."""
        return statistics.median(self.seconds)


class Bench:
    """A site under the clock."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.rows: dict[str, Row] = {}

    def note(self, key: str, row: Row) -> None:
        """Keep and print a measurement."""
        self.rows[key] = row
        print(f"    {row.what}: {row.median:.1f} s", flush=True)

    def command(self, key: str, what: str, *arguments: str, aim: float | None = None, floor: str = "") -> None:
        """Time one call of tools/cluster."""
        began = time.monotonic()
        cluster(*arguments, "--site", self.where, timeout=1800)
        self.note(key, Row(what, [time.monotonic() - began], aim, floor))

    def script(self, key: str, what: str, script: str, *, rounds: int, floor: str = "") -> None:
        """Time a script of user grid on the frontend by its own clock; the first round only warms up."""
        frontend = Site.look(self.where).first("slurm_controller")
        times = []
        for number in range(rounds + 1):
            began, ended = map(float, frontend.out(script, user="grid").split()[-2:])
            if number or not rounds:
                times.append(ended - began)
        self.note(key, Row(what, times or [ended - began], floor=floor))

    def restart(self) -> None:
        """The floor of `up`: the same containers, configured already, boot and start their daemons; then a first job."""
        cluster("stop", "--site", self.where)
        began = time.monotonic()
        cluster("start", "--site", self.where)
        deadline = began + 300
        while cluster("verify", "--quick", "--site", self.where, check=False).returncode:
            assert time.monotonic() < deadline, "no job runs after a restart"
        self.note("restart", Row("the same nodes, configured already, from boot to their first job done", [time.monotonic() - began]))

    def run(self) -> None:
        """All measurements, in an order in which each finds what it needs."""
        self.command("up", "`up`, image built: 1 + 2 nodes from nothing to the first job done", "up", aim=60, floor="restart")
        self.command("again", "`up` with nothing to do", "up", aim=15)
        self.restart()
        self.script("slurm", "`sbatch --wait` of a hello job", SLURM_ONE, rounds=ROUNDS)
        self.script("arc", "`arcsub` to FINISHED of a hello job", ARC_ONE, rounds=ROUNDS, floor="slurm")
        self.script("slurm_many", f"{BURST} jobs by sbatch, all done", SLURM_MANY, rounds=0)
        self.script("arc_many", f"{BURST} jobs by one arcsub, all FINISHED", ARC_MANY, rounds=0, floor="slurm_many")
        self.command("scale_3", "`scale compute=3`: a third compute node", "scale", "compute=3", aim=30)
        cluster("scale", "compute=6", "--site", self.where, timeout=1800)
        self.command("scale_7", "`scale compute=7`: a seventh", "scale", "compute=7", aim=30, floor="scale_3")
        self.command("shrink", "`scale compute=2`: five drained and removed", "scale", "compute=2")

    def table(self) -> str:
        """The measurements as Markdown."""
        lines = ["| what | seconds | aim | against its floor |", "|---|---|---|---|"]
        for row in self.rows.values():
            aim = f"{row.aim:.0f}" if row.aim else ""
            floor = self.rows.get(row.floor)
            ratio = f"{row.median / floor.median:.1f} × {floor.what}" if floor else ""
            lines.append(f"| {row.what} | {row.median:.1f} | {aim} | {ratio} |")
        return "\n".join(lines)


def machine() -> str:
    """What the numbers were taken on."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores ({cpu[1] if cpu else 'unknown'}), {memory:.0f} GiB, Linux {os.uname().release}, load {os.getloadavg()[0]:.1f}"


def main() -> int:
    """Measure, print, write; 1 when an aim is missed."""
    scratch = Path(tempfile.mkdtemp(prefix="gridstead-bench."))
    where = scratch / NAME
    shutil.copytree(ROOT / "inventories/local", where)
    spec = where / "cluster.yml"
    spec.write_text(re.sub(r"(?m)^name: local$", f"name: {NAME}", spec.read_text()))
    bench, before = Bench(where), machine()
    try:
        bench.run()
    finally:
        cluster("down", "--volumes", "--yes", "--site", where)
        shutil.rmtree(scratch)
        print(f"\n{before}\n\n{bench.table()}", flush=True)
        keep("site", {"machine": before, "rows": {key: asdict(row) for key, row in bench.rows.items()}})
    missed = [row.what for row in bench.rows.values() if row.aim and row.median > row.aim]
    for what in missed:
        print(f"aim missed: {what}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

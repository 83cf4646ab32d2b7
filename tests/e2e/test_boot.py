"""Nodes boot: all by themselves, into the same state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support import until

if TYPE_CHECKING:
    from support import Node, Site


def test_no_ordering_cycle(site: Site) -> None:
    """systemd breaks a cycle by leaving out one of its units, now and then another one: a service is missing after some boots."""
    for node in site.nodes.values():
        told = node.sh("systemd-analyze verify --man=no default.target 2>&1", check=False)
        # 1 is for any fault of any unit, and not all of them keep a node from booting; more is for a program that did not look.
        assert told.rc in (0, 1), str(told)
        assert "cycle" not in told.stdout, str(told)


def test_a_rebooted_node_comes_back(site: Site, controller: Node, computes: list[Node]) -> None:
    compute = computes[-1]

    compute.reboot(seconds=400)
    until(
        f"{compute.name} to rejoin Slurm",
        lambda: controller.out(f"sinfo --noheader --nodes={compute.name} --format=%T") == "idle",
        seconds=300,
    )
    for volume in compute.volumes:
        assert compute.out(f"findmnt --noheadings --output TARGET --target {volume['mount']}") == volume["mount"]
    assert controller.out(f"srun --nodelist={compute.name} hostname") == compute.name
    assert not compute.out("systemctl list-units --state=failed --plain --no-legend"), site.name

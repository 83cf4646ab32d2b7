"""The test cloud's own life: killed and run again, up when up, down to nothing. On a second cloud, beside one that is in use.

Not among the unit tests: it takes minutes. Run it as root:  python -m pytest tests/cloud/test_life.py
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud import config, root
from cloud.settings import DEFAULT_DATA, Settings

CLOUD = Path(__file__).parent / "cloud"
DATA = Path("/var/lib/gridstead-cloud-test")
ENVIRONMENT = {
    "GRIDSTEAD_CLOUD_DATA": str(DATA),
    "GRIDSTEAD_CLOUD_NETWORK": "10.177.0.0/24",
    "GRIDSTEAD_CLOUD_FLOATING": "10.178.0.0/24",
}
#: Seconds into `up` at which it is killed: within the start of the machine, the migrations, the start of the services.
MOMENTS = (1.0, 2.0, 4.0, 8.0, 14.0, 22.0, 32.0, 45.0)


def cloud(*arguments: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(CLOUD), *arguments], env=os.environ | ENVIRONMENT | variables, capture_output=True, text=True, check=False, timeout=1500
    )
    assert not check or done.returncode == 0, f"cloud {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def leftovers(settings: Settings) -> list[str]:
    """What is on this machine of a cloud, looked for without the cloud's own help."""

    def lines(*argv: str) -> list[str]:
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()

    found = []
    found += [line for line in lines("ip", "-brief", "link") if settings.device in line]
    found += [
        line for line in lines("ip", "route", "show", "table", "all") if str(settings.floating) in line or str(settings.network) in line
    ]
    found += [line for line in lines("iptables-save") if settings.device in line]
    found += [line for line in lines("losetup", "--list", "--noheadings") if str(settings.data) in line]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            # Whatever namespace it is in: who has a mount of the cloud's directory belongs to the cloud.
            mounts = (process / "mountinfo").read_text()
        except OSError:
            continue  # it ended meanwhile
        if str(settings.data) in command + mounts:
            found.append(command)
    return found


@pytest.fixture(scope="module")
def settings() -> Iterator[Settings]:
    if os.geteuid() != 0:
        pytest.skip("the test cloud needs root")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        wanted = Settings.from_environment()
    cloud("down", "--purge")
    # The root file system takes minutes to build; the cloud in use may have one.
    ready = DEFAULT_DATA / "root" / root.digest()
    if ready.is_dir():
        wanted.roots.mkdir(mode=0o700, parents=True)
        subprocess.run(["cp", "--archive", "--reflink=auto", str(ready), str(wanted.roots)], check=True)
    yield wanted
    cloud("down", "--purge")
    assert not DATA.exists()


@pytest.fixture(scope="module")
def running(settings: Settings) -> Settings:
    """A cloud that was killed on its way up again and again, and then was left to come up."""
    for moment in MOMENTS:
        process = subprocess.Popen(
            [str(CLOUD), "up", "--zones", "fake"], env=os.environ | ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(moment)
        process.kill()
        process.wait()
    cloud("up", "--zones", "fake")
    return settings


def _seen() -> dict[str, int]:
    """When each service was started, in seconds since the epoch, as far as status tells it."""
    services = json.loads(cloud("status", "--json").stdout)["services"]
    return {name: round(time.time() - entry["seconds"]) for name, entry in services.items() if entry["seconds"]}


def test_killed_at_any_moment_it_comes_up(running: Settings) -> None:
    status = json.loads(cloud("status", "--json").stdout)
    assert (status["up"], status["zones"], status["missing"]) == (True, ["fake"], [])
    assert running.clouds_yaml.stat().st_mode & 0o777 == 0o600
    assert running.data.stat().st_mode & 0o777 == 0o700


def test_up_on_an_up_cloud_changes_nothing(running: Settings) -> None:
    tree = running.roots / root.digest()
    before, written = _seen(), {path: path.stat().st_mtime_ns for path in (tree / file.target.lstrip("/") for file in config.FILES)}
    began = time.monotonic()
    cloud("up", "--zones", "fake")
    took = time.monotonic() - began
    after = _seen()
    assert set(after) == set(before)
    assert all(abs(after[name] - before[name]) <= 2 for name in before), "a service was started again"
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert took < 30


def test_a_changed_configuration_restarts_only_who_reads_it(running: Settings) -> None:
    before = _seen()
    (running.roots / root.digest() / "etc/glance/glance-api.conf").write_text("# changed by hand\n")
    time.sleep(3)
    cloud("up", "--zones", "fake")
    after = _seen()
    assert {name for name in before if after[name] > before[name] + 2} == {"glance-api"}


def test_a_service_that_was_killed_is_started_again(running: Settings) -> None:
    machine = next(pid for pid in Path("/proc").glob("[0-9]*") if str(running.state).encode() in (pid / "cmdline").read_bytes())
    inside = (machine / "task" / machine.name / "children").read_text().split()[0]
    services = Path(f"/proc/{inside}/task/{inside}/children").read_text().split()
    target = next(pid for pid in services if b"nova-scheduler" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(int(target), 9)
    cloud("up", "--zones", "fake")
    assert json.loads(cloud("status", "--json").stdout)["services"]["nova-scheduler"]["state"] == "running"


def test_down_leaves_the_cache_and_nothing_else_and_up_is_a_start_only(running: Settings) -> None:
    cloud("down")
    assert leftovers(running) == []
    assert {path.name for path in running.data.iterdir()} == {"root", "template", "passwords.json", "lock"}
    said = cloud("up", "--zones", "fake").stderr
    assert "build root" not in said
    assert "db_sync" not in said, said
    assert json.loads(cloud("status", "--json").stdout)["missing"] == []
    cloud("down")
    assert leftovers(running) == []


@pytest.mark.usefixtures("settings")  # not before the others are done with theirs
def test_networks_that_are_taken_are_refused() -> None:
    routes = subprocess.run(["ip", "-json", "-4", "route"], capture_output=True, text=True, check=True).stdout
    taken = next(route["dst"] for route in json.loads(routes) if route["dst"].endswith("/24"))
    done = cloud("up", GRIDSTEAD_CLOUD_FLOATING=taken, check=False)
    assert done.returncode == 2
    assert f"GRIDSTEAD_CLOUD_FLOATING: {taken} clashes with this machine's route to {taken}" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (("up", "--zones", "fake,moon"), {}, "--zones fake,moon: no such zone"),
        (("logs", "novaa"), {}, "no service 'novaa'"),
        (("up",), {"GRIDSTEAD_CLOUD_NETWORK": "10.1.2.3/24"}, "GRIDSTEAD_CLOUD_NETWORK=10.1.2.3/24"),
        (("up",), {"GRIDSTEAD_CLOUD_NETWORK": "10.9.9.0/29"}, "too small"),
        (("up",), {"GRIDSTEAD_CLOUD_DATA": "somewhere"}, "not an absolute path"),
        (("up",), {"GRIDSTEAD_CLOUD_FLOATING": "10.177.0.0/25"}, "too small"),
        (("up",), {"GRIDSTEAD_CLOUD_FLOATING": "10.177.0.0/16"}, "overlap"),
    ],
)
def test_bad_input_is_one_clear_message(arguments: tuple[str, ...], variables: dict[str, str], message: str) -> None:
    done = cloud(*arguments, check=False, **variables)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr

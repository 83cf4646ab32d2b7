"""APIs that answer late, wrongly or not at all, through a proxy on loopback: `up` gets through, and makes nothing twice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cloud.faulty import Answer, Delay, FaultyCloud, Reset
from project import WHOLE, inventory, more
from support import cluster

#: Where each kind of resource is created.
CREATIONS = {
    "network": r"/v2\.0/networks$",
    "subnet": r"/v2\.0/subnets$",
    "router": r"/v2\.0/routers$",
    "security group": r"/v2\.0/security-groups$",
    "port": r"/v2\.0/ports$",
    "floating address": r"/v2\.0/floatingips$",
    "server": r"/servers$",
    "keypair": r"/os-keypairs$",
    "volume": r"/volumes$",
    "attachment": r"/os-volume_attachments$",
}


#: For a cloud that does not come back: the engine's own half minute shows nothing more.
IMPATIENT = {"GRIDSTEAD_CLOUD_PAUSES": "0.1 0.2 0.3"}


def up(small: Path, proxied: FaultyCloud) -> None:
    """Run `up` through the proxy; it must succeed."""
    cluster("up", "--site", small, "--no-wait", env={"OS_CLIENT_CONFIG_FILE": str(proxied.clouds_yaml)})


def test_answers_lost_after_the_work_was_done(small: Path, member: Any, proxied: FaultyCloud) -> None:
    """The worst: the cloud creates, and the connection is reset before it can say so. A blind second try would make two."""
    before = inventory(member)
    rules = {
        what: proxied.proxy.inject(Reset(after_forwarding=True), method="POST", path=path, times=1) for what, path in CREATIONS.items()
    }
    up(small, proxied)
    assert {what: rule.hits for what, rule in rules.items()} == dict.fromkeys(CREATIONS, 1)
    assert more(before, inventory(member)) == WHOLE
    assert json.loads(cluster("plan", "--site", small, "--json").stdout) == []


def test_services_that_are_away_for_a_moment(small: Path, member: Any, proxied: FaultyCloud) -> None:
    before = inventory(member)
    rules = [proxied.proxy.inject(Answer(503), method="POST", path=path, times=2) for path in CREATIONS.values()]
    rules.append(proxied.proxy.inject(Answer(429, retry_after=1), method="GET", path="/servers/detail", times=2))
    rules.append(proxied.proxy.inject(Reset(), method="GET", path=r"/v2\.0/ports", times=2))
    rules.append(proxied.proxy.inject(Answer(500), method="GET", path="/volumes/detail", times=1))
    rules.append(proxied.proxy.inject(Answer(502, after_forwarding=True), method="POST", path="/servers$", times=1, skip=1))
    up(small, proxied)
    assert [rule for rule in rules if not rule.hits] == []
    assert more(before, inventory(member)) == WHOLE


def test_a_slow_cloud(small: Path, member: Any, proxied: FaultyCloud) -> None:
    before = inventory(member)
    rule = proxied.proxy.inject(Delay(0.3), times=None)
    up(small, proxied)
    assert rule.hits > 20
    assert more(before, inventory(member)) == WHOLE


def test_a_service_that_stays_away(inner: Path, proxied: FaultyCloud) -> None:
    """It is told once, in the cloud's words, with the step that failed; what does not need it goes on."""
    proxied.proxy.inject(Answer(503), method="POST", path=r"/volumes$", times=None)
    done = cluster("up", "--site", inner, "--no-wait", check=False, env={"OS_CLIENT_CONFIG_FILE": str(proxied.clouds_yaml), **IMPATIENT})
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "create volume" in done.stderr
    assert "503" in done.stderr
    assert "✓ create node worker002" in done.stderr
    proxied.proxy.clear()
    up(inner, proxied)


def test_no_secret_in_what_is_told_and_kept(inner: Path, proxied: FaultyCloud) -> None:
    """The password is in no output, no state, no error."""
    config = member_config()
    password = config["auth"]["password"]
    proxied.proxy.inject(Answer(503), method="POST", path=r"/v3/auth/tokens", times=None)
    done = cluster(
        "up", "--site", inner, "--no-wait", "-v", check=False, env={"OS_CLIENT_CONFIG_FILE": str(proxied.clouds_yaml), **IMPATIENT}
    )
    assert done.returncode == 1
    proxied.proxy.clear()
    seen = cluster("up", "--site", inner, "--no-wait", "-v", env={"OS_CLIENT_CONFIG_FILE": str(proxied.clouds_yaml)})
    told = done.stdout + done.stderr + seen.stdout + seen.stderr + cluster("inventory", "--site", inner).stdout
    assert password not in told
    kept = [path for path in Path(os.environ["GRIDSTEAD_STATE"]).rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if password.encode() in path.read_bytes()]


def member_config() -> dict[str, Any]:
    """The member's entry of clouds.yaml."""
    import openstack

    return dict(openstack.config.OpenStackConfig().get_one(os.environ["OS_CLOUD"]).config)

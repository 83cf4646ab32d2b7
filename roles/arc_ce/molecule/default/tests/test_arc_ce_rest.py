"""REST: who is let in and who is not, jobs by ARC's client, certificates of one's own, tokens."""

import json
import re
import time
from pathlib import Path

import pytest
from testinfra.host import Host

from role_support import play_variables, run_role

testinfra_hosts = ["ansible://arc_rest"]

OPTIONS = play_variables(__file__, "Converge")
CE, ROOTS_CE = "https://frontend001.grid.test:8443/arex", "https://frontend001.grid.test:8444/arex"
ANCHOR = "/etc/grid-security/certificates/gridstead-site.pem"
CURL = f"curl --silent --write-out '\\n%{{http_code}}' --cacert {ANCHOR}"


def as_user(user: str, script: str) -> str:
    return f"runuser --login {user} --command '{script}'"


def status(said: str) -> str:
    """The HTTP status of what curl printed; 000 when there was no TLS connection."""
    return said.splitlines()[-1]


def asked(host: Host, user: str, path: str) -> str:
    """What REST answers a user with his certificate, and the status."""
    words = f"{CURL} --cert .globus/usercert.pem --key .globus/userkey.pem {CE}/rest/1.0/{path}"
    return str(host.run(f"cd ~{user} && runuser -u {user} -- {words}").stdout)


def wait_for(host: Host, command: str, seconds: float = 60) -> str:
    deadline = time.monotonic() + seconds
    while True:
        done = host.run(command)
        if done.rc == 0:
            return str(done.stdout)
        assert time.monotonic() < deadline, f"{command}: {done.stdout}{done.stderr}"
        time.sleep(0.3)


@pytest.mark.parametrize(("ce", "owner"), [(CE, "grid"), (ROOTS_CE, "alice")])
def test_job(host: Host, ce: str, owner: str) -> None:
    """With a proxy, by ARC's client: to the end, with its exit code, and back. An A-REX of root runs it as the user."""
    host.check_output(as_user("alice", "arcproxy"))
    said = host.run(as_user("alice", f"arcsub -C {ce} -T org.nordugrid.arcrest -j test.dat /usr/local/share/gridstead/hello.xrsl"))
    assert said.rc == 0, said.stderr
    job = said.stdout.split()[-1]
    told = wait_for(host, as_user("alice", f"arcstat -l -j test.dat {job}") + " | grep -E 'State|Exit Code' | grep -B1 Exit")
    assert re.sub(r"\s+", " ", told).strip() == "State: Finished Exit Code: 0"
    host.check_output(as_user("alice", f"arcget -j test.dat --dir results {job}"))
    name = job.rsplit("/", 1)[1]
    assert host.check_output(f"cat /grid/home/alice/results/{name}/out.txt").startswith(f"Hello from compute001, user {owner}\n")
    host.check_output(as_user("alice", "rm -r results test.dat"))


def test_a_plain_certificate_is_enough(host: Host) -> None:
    assert status(asked(host, "alice", "jobs")) == "200"
    said = asked(host, "alice", "info")
    assert status(said) == "200"
    assert "org.nordugrid.arcrest" in said


def test_a_user_who_is_not_mapped_is_refused(host: Host) -> None:
    assert status(asked(host, "bob", "jobs")) == "403"
    said = host.run(as_user("bob", f"arcsub -C {CE} -T org.nordugrid.arcrest /usr/local/share/gridstead/hello.xrsl"))
    assert said.rc != 0


def test_a_foreign_certificate_is_refused(host: Host) -> None:
    """Even one that names a user of the site."""
    subject = host.check_output("openssl x509 -noout -subject -nameopt compat -in /grid/home/alice/.globus/usercert.pem").partition("=")[2]
    host.check_output(f"openssl req -x509 -newkey rsa:2048 -nodes -keyout /tmp/foreign.key -out /tmp/foreign.pem -subj '{subject}' 2>&1")
    assert status(host.run(f"{CURL} --cert /tmp/foreign.pem --key /tmp/foreign.key {CE}/rest/1.0/jobs").stdout) == "000"
    assert status(host.run(f"{CURL} {CE}/rest/1.0/jobs").stdout) == "403", "and nobody without one"


def test_information(host: Host) -> None:
    wait_for(host, "test -s /var/spool/arc/jobstatus/info.xml")
    said = host.check_output(as_user("alice", f"arcinfo -l -C {CE} -T org.nordugrid.arcrest"))
    assert re.search(rf"URL: {CE}\n +Interface: org.nordugrid.arcrest\n", said), said
    assert "Health state: ok" in said


def test_probe(host: Host) -> None:
    said = host.check_output(
        as_user(
            "alice",
            "/usr/lib/nagios/plugins/check_arcrest_info --host frontend001.grid.test --port 8443"
            " --tls-ca-dir /etc/grid-security/certificates --tls-cert .globus/usercert.pem --tls-key .globus/userkey.pem",
        )
    )
    assert said == "No problems found."


def test_runtime_environments(host: Host) -> None:
    assert host.check_output("arcctl rte list --enabled").split() == ["ENV/PROXY"]


def test_a_job_that_fails_had_its_proxy(host: Host) -> None:
    """A delegation, the runtime environment that hands it to the job, and the exit code of a failure, which INTERNAL does not tell."""
    job = '&(executable="/bin/sh")(arguments="-c" "cat \\$X509_USER_PROXY | grep -c BEGIN; exit 3")(stdout="out")(runtimeenvironment="ENV/PROXY")'
    host.check_output(f"cat > /grid/home/alice/proxy.xrsl << 'END'\n{job}\nEND")
    host.check_output(as_user("alice", "arcproxy"))
    name = host.check_output(as_user("alice", f"arcsub -C {CE} -T org.nordugrid.arcrest -j test.dat proxy.xrsl")).split()[-1]
    told = wait_for(host, as_user("alice", f"arcstat -l -j test.dat {name}") + " | grep -E 'State|Exit Code' | grep -B1 Exit")
    assert re.sub(r"\s+", " ", told).strip() == "State: Failed Exit Code: 3"
    host.check_output(as_user("alice", f"arcget -j test.dat --dir results {name}"))
    assert host.check_output("cat /grid/home/alice/results/*/out") == "4", (
        "what was delegated and its key, the proxy that did it, the certificate that made that"
    )
    host.check_output(as_user("alice", "rm -r results test.dat proxy.xrsl"))


def test_another_local_user_is_refused_without_root(host: Host) -> None:
    run_role(
        host, "arc_ce", {**OPTIONS, "arc_ce_rest_mapping": {"/CN=somebody": "bob"}}, fails_with="cannot run jobs of: bob (none is right"
    )


def test_certificates_of_ones_own_and_tokens(host: Host, tmp_path: Path) -> None:
    """An authority, a host certificate and a user that the site's own knows nothing of; an issuer of tokens that cannot be asked."""
    host.check_output("rm -rf /tmp/own /tmp/jwt && mkdir /tmp/own")
    host.check_output(
        "cd /tmp/own && exec 2>&1 && openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj '/O=Elsewhere/CN=Their CA' &&"
        " for name in frontend001.grid.test carol; do"
        '  openssl req -newkey rsa:2048 -nodes -keyout $name.key -out $name.csr -subj "/O=Elsewhere/CN=$name" &&'
        '  printf "subjectAltName=DNS:$name\\n" > ext && openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -days 2 -extfile ext -out $name.pem'
        "; done"
    )
    for name in ("ca.pem", "frontend001.grid.test.pem", "frontend001.grid.test.key"):
        (tmp_path / name).write_text(host.file(f"/tmp/own/{name}").content_string)
    host.check_output("arcctl test-jwt --jwk-dir /tmp/jwt init 2>&1")
    issuer = json.loads(host.check_output("cat /tmp/jwt/*/metadata.json"))["issuer"]
    (tmp_path / "keys.json").write_text(host.check_output("cat /tmp/jwt/*/jwks.json"))
    token = host.check_output("arcctl test-jwt --jwk-dir /tmp/jwt token --username carol 2> /dev/null")
    bearer = f'--header "Authorization: Bearer {token}"'
    assert status(host.run(f"{CURL} {bearer} {CE}/rest/1.0/jobs").stdout) == "403"
    own = {
        "grid_ca_trust": [str(tmp_path / "ca.pem")],
        "arc_ce_rest_certificate": str(tmp_path / "frontend001.grid.test.pem"),
        "arc_ce_rest_key": str(tmp_path / "frontend001.grid.test.key"),
        "arc_ce_rest_mapping": {"/O=Elsewhere/CN=carol": "grid"},
        "arc_ce_rest_groups": {"bearers": {"user": "grid", "options": {"authtokens": f"* {issuer} * * *"}}},
        "arc_ce_rest_issuers": {issuer: str(tmp_path / "keys.json")},
    }
    curl = CURL.replace(ANCHOR, "/tmp/own/ca.pem")
    carol = "--cert /tmp/own/carol.pem --key /tmp/own/carol.key"
    try:
        run_role(host, "arc_ce", {**OPTIONS, **own})
        assert status(host.run(f"{curl} {carol} {CE}/rest/1.0/jobs").stdout) == "200"
        assert status(host.run(f"{curl} {bearer} {CE}/rest/1.0/jobs").stdout) == "200"
        assert status(host.run(f"{curl} {bearer}x {CE}/rest/1.0/jobs").stdout) == "403", "signed otherwise"
    finally:
        run_role(host, "arc_ce", OPTIONS)
    assert status(host.run(f"{CURL} {carol} {CE}/rest/1.0/jobs").stdout) == "000", "trusted no more"
    assert status(host.run(f"{CURL} {bearer} {CE}/rest/1.0/jobs").stdout) == "403"
    host.check_output("rm -rf /tmp/own /tmp/jwt")


def test_it_comes_back_with_the_arex_and_goes_with_the_variable(host: Host) -> None:
    host.check_output("systemctl restart arc-ce")
    wait_for(host, "systemctl is-active arc-ce-ws arc-ce-states")
    assert status(asked(host, "alice", "jobs")) == "200"
    try:
        run_role(host, "arc_ce", {**OPTIONS, "arc_ce_rest": False})
        assert host.run(f"{CURL} {CE}/rest/1.0/info").rc == 7, "nobody listens"
        assert host.service("arc-ce").is_running
    finally:
        run_role(host, "arc_ce", OPTIONS)
    assert status(asked(host, "alice", "jobs")) == "200"

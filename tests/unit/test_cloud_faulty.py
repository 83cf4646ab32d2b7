"""The proxy that spoils requests, against a small server of the standard library."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from cloud.faulty import Answer, Delay, Proxy, Reset


class _Upstream(ThreadingHTTPServer):
    """Answers each request with what it was; answers in JSON hold a link to itself, as an API's do."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Echo)
        self.seen: list[tuple[str, str, bytes]] = []

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Upstream

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((self.command, self.path, body))
        if self.command == "DELETE":
            self.send_response(204)
            self.end_headers()
            return
        binary = self.path.startswith("/file")
        answer = body if binary else json.dumps({"host": self.headers["Host"], "next": f"{self.server.base}/servers?marker=1"}).encode()
        self.send_response(201 if self.command == "POST" else 200)
        self.send_header("Content-Type", "application/octet-stream" if binary else "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.send_header("Location", f"{self.server.base}/servers/1")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle  # noqa: N815  (the names http.server looks for)


@pytest.fixture
def upstream() -> Iterator[_Upstream]:
    with _Upstream() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def proxy(upstream: _Upstream) -> Iterator[Proxy]:
    with Proxy({"compute": upstream.base}) as opened:
        yield opened


def ask(proxy: Proxy, method: str, path: str, body: bytes | Iterator[bytes] | None = None) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection(urlsplit(proxy.url("compute")).netloc, timeout=10)
    try:
        connection.request(method, path, body, encode_chunked=not isinstance(body, bytes | None))
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def test_what_no_rule_names_passes_unchanged(proxy: Proxy, upstream: _Upstream) -> None:
    proxy.inject(Answer(503), method="DELETE")
    status, _, _ = ask(proxy, "POST", "/servers?x=1", b'{"a": 1}')
    assert status == 201
    assert upstream.seen == [("POST", "/servers?x=1", b'{"a": 1}')]


def test_urls_of_the_cloud_lead_back_to_the_proxy(proxy: Proxy, upstream: _Upstream) -> None:
    _, headers, body = ask(proxy, "GET", "/")
    assert json.loads(body)["next"] == f"{proxy.url('compute')}/servers?marker=1"
    assert headers["Location"] == f"{proxy.url('compute')}/servers/1"
    assert json.loads(body)["host"] == urlsplit(upstream.base).netloc, "the upstream must see its own name: it builds links of it"


def test_a_url_that_only_begins_like_the_clouds_is_left_alone() -> None:
    with Proxy({"compute": "http://192.0.2.1:80"}) as proxy:
        assert proxy.rewrite("http://192.0.2.1:8080/v3") == "http://192.0.2.1:8080/v3"
        assert proxy.rewrite("http://192.0.2.1:80/v3") == f"{proxy.url('compute')}/v3"


@pytest.mark.parametrize("fault", [Answer(503), Answer(409), Answer(429, retry_after=7)])
def test_an_injected_answer_comes_so_many_times(proxy: Proxy, upstream: _Upstream, fault: Answer) -> None:
    rule = proxy.inject(fault, method="POST", path=r"/servers$", times=2)
    answers = [ask(proxy, "POST", "/servers", b"{}") for _ in range(3)]
    assert [status for status, _, _ in answers] == [fault.status, fault.status, 201]
    assert answers[0][1]["Retry-After"] == ("7" if fault.retry_after else None)
    assert json.loads(answers[0][2])["error"]["code"] == fault.status
    assert rule.hits == 2
    assert len(upstream.seen) == 1, "a refused request must not reach the cloud"


def test_an_answer_after_forwarding_hides_what_the_cloud_did(proxy: Proxy, upstream: _Upstream) -> None:
    proxy.inject(Answer(504, after_forwarding=True))
    assert ask(proxy, "POST", "/servers", b"{}")[0] == 504
    assert len(upstream.seen) == 1


@pytest.mark.parametrize("after", [False, True])
def test_a_reset_connection(proxy: Proxy, upstream: _Upstream, after: bool) -> None:
    proxy.inject(Reset(after_forwarding=after), path="/servers")
    with pytest.raises(ConnectionResetError):
        ask(proxy, "POST", "/servers", b"{}")
    assert len(upstream.seen) == (1 if after else 0)
    assert ask(proxy, "POST", "/servers", b"{}")[0] == 201
    assert [request.status for request in proxy.requests()] == [None, 201]


def test_a_delayed_answer_is_right_and_late(proxy: Proxy, upstream: _Upstream) -> None:
    proxy.inject(Delay(0.4), path="slow")
    began = time.monotonic()
    assert ask(proxy, "GET", "/slow")[0] == 200
    assert time.monotonic() - began >= 0.4
    # Once: were the next one late, too, it would be the day after tomorrow.
    rule = proxy.inject(Delay(2e5), path="slow", skip=1)
    assert ask(proxy, "GET", "/slow")[0] == 200
    assert rule.hits == 0
    assert len(upstream.seen) == 2


def test_a_rule_can_let_some_pass_first_and_can_be_for_all(proxy: Proxy) -> None:
    proxy.inject(Answer(500), method="GET", times=None, skip=1)
    assert [ask(proxy, "GET", "/x")[0] for _ in range(4)] == [200, 500, 500, 500]
    proxy.clear()
    assert ask(proxy, "GET", "/x")[0] == 200


def test_a_rule_for_another_service_is_not_for_this_one(proxy: Proxy) -> None:
    proxy.inject(Answer(500), service="network")
    assert ask(proxy, "GET", "/x")[0] == 200


def test_requests_are_counted_by_kind(proxy: Proxy) -> None:
    ask(proxy, "GET", "/servers/6f70656e-7374-6163-6b00-000000000001?a=b")
    ask(proxy, "GET", "/servers/6f70656e737461636b00000000000002")
    ask(proxy, "DELETE", "/servers/6f70656e-7374-6163-6b00-000000000001")
    assert proxy.counts() == {"GET compute/servers/{id}": 2, "DELETE compute/servers/{id}": 1}
    assert len(proxy.requests(method="GET", path="0001")) == 1
    proxy.forget()
    assert not proxy.counts()


def test_bodies_pass_whole_however_they_are_sent(proxy: Proxy, upstream: _Upstream) -> None:
    data = bytes(range(256)) * 1024
    assert ask(proxy, "PUT", "/file", data)[2] == data
    assert ask(proxy, "PUT", "/file", iter([data[:1000], data[1000:]]))[2] == data
    assert [body for _, _, body in upstream.seen] == [data, data]


def test_answers_without_a_body(proxy: Proxy) -> None:
    assert ask(proxy, "DELETE", "/servers/1")[0] == 204
    status, headers, body = ask(proxy, "HEAD", "/servers")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 0


def test_a_connection_serves_several_requests(proxy: Proxy) -> None:
    connection = http.client.HTTPConnection(urlsplit(proxy.url("compute")).netloc, timeout=10)
    proxy.inject(Answer(409), path="/two")
    for path, status in (("/one", 200), ("/two", 409), ("/three", 200)):
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status
    connection.close()


def test_a_cloud_that_is_away_is_a_502_with_the_reason() -> None:
    with Proxy({"compute": "http://127.0.0.1:1"}) as proxy:
        status, _, body = ask(proxy, "GET", "/servers")
        assert status == 502
        assert "does not answer" in json.loads(body)["error"]["message"]


def test_requests_in_parallel(proxy: Proxy, upstream: _Upstream) -> None:
    rule = proxy.inject(Answer(503), times=5)
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(ask(proxy, "GET", "/servers")[0])) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 15 + [503] * 5
    assert (rule.hits, len(upstream.seen)) == (5, 15)


def test_no_port_is_left_open(upstream: _Upstream) -> None:
    with Proxy({"compute": upstream.base}) as proxy:
        port = urlsplit(proxy.url("compute")).port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    with pytest.raises(ConnectionRefusedError):
        connection.request("GET", "/")

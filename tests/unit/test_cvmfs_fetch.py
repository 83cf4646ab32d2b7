"""Downloads: who is asked, who is asked next, when it is tried again, and when it is given up. On real connections; the time is the tests' own."""

from __future__ import annotations

import http.client
import random
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cvmfs_web import Answer, Web, serving
from gridstead.cvmfs.client.fetch import Downloader, FetchError, MissingError, OfflineError, Timing
from gridstead.cvmfs.client.routes import DIRECT, Rotation, Route, parse_proxies, parse_servers, public
from gridstead.cvmfs.client.verdict import Contact, Fault, Verdict, of_error, of_status
from gridstead.cvmfs.errors import CorruptObjectError, InputError

CONTENT = random.Random(1).randbytes(600_000)  # noqa: S311 - the same in every run
#: What a busy machine takes to answer is no failure here. Tests about silence say whose.
PATIENT = Timing(proxy=60, direct=60, retries=1, backoff_first=2, backoff_most=10)


@dataclass(frozen=True)
class Impatient(Timing):
    """Waits for one server or proxy only a moment."""

    silent: str = ""

    def patience(self, route: Route) -> float:
        return 0.2 if self.silent in (route.host, route.proxy) else super().patience(route)


@dataclass
class Time:
    """The downloader's time, which passes when somebody waits.

    Attributes:
        now: seconds.
        pauses: how long was waited.
        meanwhile: what happens then.
    """

    now: float = 1000.0
    pauses: list[float] = field(default_factory=list)
    meanwhile: Callable[[], object] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        self.meanwhile()


@pytest.fixture(name="clock")
def _clock() -> Time:
    return Time()


@pytest.fixture(name="make")
def _make(clock: Time) -> Iterator[Callable[..., Downloader]]:
    """Makes downloaders that go by the tests' time."""
    made: list[Downloader] = []

    def make(servers: list[str], proxies: list[list[str]] | None = None, timing: Timing = PATIENT) -> Downloader:
        made.append(Downloader(servers, proxies or [[DIRECT]], timing, lambda: clock.now, clock.sleep))
        return made[-1]

    yield make
    for downloader in made:
        downloader.close()


@pytest.fixture(autouse=True)
def _content(tmp_path: Path) -> None:
    (tmp_path / "object").write_bytes(CONTENT)


@pytest.fixture
def first(tmp_path: Path) -> Iterator[Web]:
    with serving(tmp_path) as web:
        yield web


@pytest.fixture
def second(tmp_path: Path) -> Iterator[Web]:
    with serving(tmp_path) as web:
        yield web


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Web]:
    with serving(tmp_path) as web:
        yield web


def nowhere() -> str:
    """A URL at which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """A URL at which connections are taken and nothing is answered."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def whole(blocks: Iterator[bytes]) -> bytes:
    return b"".join(blocks)


def checked(blocks: Iterator[bytes]) -> bytes:
    data = b"".join(blocks)
    if data != CONTENT:
        raise CorruptObjectError(f"{len(data)} bytes that are wrong")
    return data


def get(downloader: Downloader, path: str = "object") -> bytes:
    return downloader.get(path, checked)


Make = Callable[..., Downloader]


def test_one_connection_for_many_files(make: Make, first: Web) -> None:
    downloader = make([first.url])
    for _ in range(20):
        assert get(downloader) == CONTENT
    with pytest.raises(MissingError):
        get(downloader, "nothing")
    assert get(downloader) == CONTENT
    assert len(first._connections) == 1, "kept open between requests, after an error too"


def test_a_connection_that_the_server_closed_meanwhile(make: Make, first: Web, clock: Time) -> None:
    downloader = make([first.url])
    get(downloader)
    first.stop()
    first.start()
    assert get(downloader) == CONTENT
    assert clock.pauses == []


# Servers


@pytest.mark.parametrize("status", [400, 403, 500, 502, 503, 504])
def test_next_server_after_an_error(make: Make, first: Web, second: Web, status: int) -> None:
    first.spoil("object", lambda body: Answer(body, status=status))
    downloader = make([first.url, second.url])
    assert get(downloader) == CONTENT
    assert downloader.hosts.order()[0] == second.url, "it stays with the one that works"


@pytest.mark.parametrize("status", [403, 500, 503])
def test_one_objects_error_is_no_other_objects(make: Make, first: Web, status: int) -> None:
    """Whatever a server answers for one of them, again and again, all others are fetched as before."""
    first.spoil("bad", lambda body: Answer(body, status=status))
    downloader = make([first.url])
    for _ in range(5):
        with pytest.raises(FetchError, match=f"answers {status}"):
            get(downloader, "bad")
        assert get(downloader) == CONTENT


def test_an_error_that_all_servers_give_moves_nobody(make: Make, first: Web, second: Web) -> None:
    for web in (first, second):
        web.spoil("bad", lambda body: Answer(body, status=500))
    downloader = make([first.url, second.url])
    with pytest.raises(FetchError):
        get(downloader, "bad")
    assert downloader.hosts.order()[0] == first.url


def test_next_server_when_a_file_is_missing(make: Make, first: Web, second: Web) -> None:
    first.spoil("object", lambda _: Answer(b"?", status=404))
    downloader = make([first.url, second.url])
    assert get(downloader) == CONTENT
    assert downloader.hosts.order()[0] == first.url, "one missing file is no reason to leave a server"


def test_missing_everywhere(make: Make, first: Web, second: Web, clock: Time) -> None:
    downloader = make([first.url, second.url])
    with pytest.raises(MissingError, match="does not have it"):
        get(downloader, "nothing")
    assert get(downloader) == CONTENT
    assert clock.pauses == [], "that is no reason to wait"


def test_nobody_listens_at_the_first(make: Make, second: Web) -> None:
    downloader = make([nowhere(), second.url])
    assert get(downloader) == CONTENT
    assert downloader.hosts.order()[0] == second.url


def test_no_answer_from_the_first(make: Make, silent: str, second: Web) -> None:
    downloader = make([silent, second.url], timing=Impatient(silent=silent))
    assert get(downloader) == CONTENT
    assert downloader.hosts.order()[0] == second.url


# What passes


def test_a_server_that_starts_again(make: Make, first: Web, clock: Time) -> None:
    first.stop()
    clock.meanwhile = first.start
    assert get(make([first.url])) == CONTENT
    assert len(clock.pauses) == 1
    assert 1 <= clock.pauses[0] <= 2


def test_a_server_that_starts_again_behind_a_proxy(make: Make, first: Web, proxy: Web, clock: Time) -> None:
    """The proxy answers 503 for it, as squid does."""
    first.stop()
    clock.meanwhile = first.start
    assert get(make([first.url], [[proxy.url]])) == CONTENT
    assert len(clock.pauses) == 1


def test_a_proxy_that_starts_again(make: Make, first: Web, proxy: Web, clock: Time) -> None:
    proxy.stop()
    clock.meanwhile = proxy.start
    downloader = make([first.url], [[proxy.url], [DIRECT]])
    assert get(downloader) == CONTENT
    assert proxy.requests == [f"{first.url}/object"], "nobody goes past it"
    assert downloader.proxies.order()[0] == proxy.url


def test_how_often_and_after_how_long(make: Make, first: Web, clock: Time) -> None:
    """CVMFS_MAX_RETRIES, CVMFS_BACKOFF_INIT and CVMFS_BACKOFF_MAX, for each request."""
    first.stop()
    downloader = make([first.url], timing=Timing(retries=4, backoff_first=2, backoff_most=5))
    for _ in range(2):
        clock.pauses.clear()
        with pytest.raises(FetchError, match="refused"):
            get(downloader)
        assert [most / 2 <= pause <= most for pause, most in zip(clock.pauses, (2, 4, 5, 5), strict=True)] == [True] * 4
    assert downloader.statistics.retries == 8
    clock.pauses.clear()
    with pytest.raises(FetchError, match="refused"):
        get(make([first.url], timing=Timing(retries=0)))
    assert clock.pauses == []


@pytest.mark.parametrize("status", [404, 403, 500])
def test_what_does_not_pass_is_not_waited_for(make: Make, first: Web, status: int, clock: Time) -> None:
    first.spoil("object", lambda body: Answer(body, status=status))
    with pytest.raises(FetchError):
        get(make([first.url]))
    assert clock.pauses == []


@pytest.mark.parametrize(
    "answer",
    [
        lambda body: Answer(body[:1000], length=len(body)),
        lambda _: Answer(close=True),
    ],
    ids=["truncated", "closed"],
)
def test_a_transfer_that_breaks_is_repeated_then_left(make: Make, first: Web, second: Web, answer: Callable[[bytes], Answer]) -> None:
    first.spoil("object", answer, times=1)
    downloader = make([first.url, second.url])
    assert get(downloader) == CONTENT
    assert (len(first.requests), second.requests) == (2, [])
    first.spoil("object", answer)
    assert get(downloader) == CONTENT
    assert downloader.hosts.order()[0] == second.url


def test_too_slow(make: Make, first: Web, second: Web, clock: Time) -> None:
    """A server that sends a little now and then never runs into the timeout of one read."""
    downloader = make([first.url, second.url], timing=Timing(direct=60, retries=0, low_speed=1024))
    read = http.client.HTTPResponse.read1

    def slowly(response: http.client.HTTPResponse, _: int = -1) -> bytes:
        """Some bytes each 100 s from the first, each second from the other."""
        clock.now += 1 if second.requests else 100
        return read(response, 2_000)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http.client.HTTPResponse, "read1", slowly)
        assert get(downloader) == CONTENT
    assert (len(first.requests), len(second.requests)) == (1, 1)


# Wrong bytes


def test_wrong_bytes_are_asked_for_again_without_caches(make: Make, first: Web) -> None:
    first.spoil("object", lambda body: Answer(body[:-1] + b"?"), times=1)
    assert get(make([first.url])) == CONTENT
    assert [headers.get("Cache-Control") for headers in first.headers] == [None, "no-cache"]


def test_wrong_bytes_from_one_server(make: Make, first: Web, second: Web) -> None:
    first.spoil("object", lambda body: Answer(body[:-1] + b"?"))
    assert get(make([first.url, second.url])) == CONTENT
    assert second.headers[0].get("Cache-Control") is None, "the next server's caches are not to blame"


def test_wrong_bytes_from_all(make: Make, first: Web, second: Web) -> None:
    for web in (first, second):
        web.spoil("object", lambda body: Answer(b"?" + body))
    with pytest.raises(CorruptObjectError, match="that are wrong"):
        get(make([first.url, second.url]))


# Proxies


def test_through_a_proxy(make: Make, first: Web, proxy: Web) -> None:
    assert get(make([first.url], [[proxy.url]])) == CONTENT
    assert proxy.requests == [f"{first.url}/object"]


def test_proxys_password(make: Make, first: Web, proxy: Web) -> None:
    url = proxy.url.replace("http://", "http://us%40er:se:cret@")
    assert get(make([first.url], [[url]])) == CONTENT
    assert proxy.headers[0]["Proxy-Authorization"] == "Basic dXNAZXI6c2U6Y3JldA=="
    proxy.stop()
    with pytest.raises(FetchError) as caught:
        get(make([first.url], [[url]]))
    assert "cret" not in str(caught.value)
    assert public("http://me:secret@a:3128|http://b;http://c/d@e:f") == "http://me:***@a:3128|http://b;http://c/d@e:f"


def test_proxies_of_a_group_share_the_load(make: Make, first: Web, proxy: Web, second: Web) -> None:
    used = {make([first.url], [[proxy.url, second.url]]).proxies.order()[0] for _ in range(64)}
    assert used == {proxy.url, second.url}


def test_next_proxy_then_next_group(make: Make, first: Web, proxy: Web) -> None:
    dead, deader = nowhere(), nowhere()
    downloader = make([first.url], [[dead, deader], [proxy.url], [DIRECT]])
    assert get(downloader) == CONTENT
    assert downloader.proxies.order()[0] == proxy.url
    proxy.stop()
    assert get(downloader) == CONTENT
    assert downloader.proxies.order()[0] == DIRECT
    assert first.requests[-1] == "/object"


@pytest.mark.parametrize("status", [401, 403, 407, 418])
def test_a_proxy_that_refuses(make: Make, first: Web, proxy: Web, status: int) -> None:
    """As squid does for a server that is not on its list: the way without it is tried."""
    proxy.fault = lambda *_: Answer(b"no", status=status)
    downloader = make([first.url], [[proxy.url], [DIRECT]])
    assert get(downloader) == CONTENT
    assert downloader.proxies.order()[0] == DIRECT, "and kept to"
    assert get(downloader) == CONTENT
    assert len(proxy.requests) == 1


def test_a_proxy_that_refuses_one_server_is_asked_for_the_other(make: Make, first: Web, second: Web, proxy: Web) -> None:
    proxy.fault = lambda path, _: Answer(b"no", status=403) if path.startswith(first.url) else None
    downloader = make([first.url, second.url], [[proxy.url]])
    assert get(downloader) == CONTENT
    assert proxy.requests == [f"{first.url}/object", f"{second.url}/object"]


def test_a_dead_proxy_is_not_asked_for_each_server(make: Make, first: Web, second: Web) -> None:
    """No connection is one whatever the server: it costs its time-out once."""
    first.spoil("object", lambda body: Answer(body, status=500))
    dead = nowhere()
    downloader = make([first.url, second.url], [[dead], [DIRECT]], Timing(proxy=60, direct=60, retries=0))
    assert get(downloader) == CONTENT
    second.stop()
    downloader = make([first.url, second.url], [[dead], [DIRECT]], Timing(proxy=60, direct=60, retries=0))
    with pytest.raises(FetchError) as caught:
        get(downloader)
    assert str(caught.value).count(dead) == 1


def test_a_server_that_only_the_proxy_reaches(make: Make, proxy: Web, first: Web) -> None:
    """Direct was in use, as the proxy had been away for a while: a refused connection does not rule the proxy out."""
    port = nowhere()
    proxy.fault = lambda *_: Answer(CONTENT)
    downloader = make([port], [[proxy.url], [DIRECT]], Timing(proxy=60, direct=60, retries=0))
    downloader.proxies.failed(proxy.url)
    assert get(downloader) == CONTENT
    assert downloader.proxies.order()[0] == proxy.url
    assert first.requests == []


def test_a_dead_server_behind_a_good_proxy(make: Make, second: Web, proxy: Web) -> None:
    """The proxy's 503 is the server's fault: the proxy stays."""
    downloader = make([nowhere(), second.url], [[proxy.url], [DIRECT]])
    assert get(downloader) == CONTENT
    assert downloader.proxies.order()[0] == proxy.url
    assert downloader.hosts.order()[0] == second.url


def test_a_silent_server_behind_a_proxy(make: Make, first: Web, second: Web, proxy: Web) -> None:
    """Whose fault the silence is cannot be known: the other server is tried through the same proxy as well."""
    proxy.fault = lambda path, _: Answer(close=True, delay=1) if path.startswith(first.url) else None
    assert get(make([first.url, second.url], [[proxy.url]], Impatient(silent=first.url))) == CONTENT


def test_wrong_bytes_in_a_proxys_cache(make: Make, first: Web, proxy: Web) -> None:
    proxy.spoil("object", lambda body: Answer(b"?" + body), times=1)
    assert get(make([first.url], [[proxy.url]])) == CONTENT
    assert proxy.headers[1]["Cache-Control"] == "no-cache"
    assert proxy.headers[1]["Pragma"] == "no-cache"


def test_part_of_a_file(make: Make, first: Web) -> None:
    assert make([first.url]).get("object", whole, span=(1000, 50)) == CONTENT[1000:1050]


def test_a_name_that_is_not_utf8(make: Make, first: Web, tmp_path: Path) -> None:
    (tmp_path / "caf\udce9").write_bytes(CONTENT)
    first.fault = lambda path, _: Answer(CONTENT) if path == "/caf%E9" else None
    assert get(make([first.url]), "caf\udce9") == CONTENT


# When nobody answers


def no_connection(monkeypatch: pytest.MonkeyPatch, *urls: str) -> list[str]:
    """Have connections to some servers come about never, as where a firewall drops what is sent; gives the attempts."""
    real = socket.create_connection
    tried: list[str] = []

    def connect(address: tuple[str, int], *rest: object, **more: object) -> socket.socket:
        url = f"http://{address[0]}:{address[1]}"
        if url in urls:
            tried.append(url)
            raise TimeoutError("timed out")
        return real(address, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "create_connection", connect)
    return tried


def test_when_nobody_answers_one_request_tries_and_the_others_fail_at_once(
    make: Make, first: Web, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloader = make([first.url])
    with monkeypatch.context() as patch:
        tried = no_connection(patch, first.url)
        with pytest.raises(FetchError) as caught:
            get(downloader)
        assert not isinstance(caught.value, OfflineError)
        assert len(tried) == 2
        for _ in range(100):
            with pytest.raises(OfflineError, match="no connection came about a moment ago"):
                get(downloader)
        assert len(tried) == 2
        clock.now += 2
        with pytest.raises(FetchError, match="timed out"):
            get(downloader)
        clock.now += 3
        with pytest.raises(OfflineError):
            get(downloader)
        clock.now += 1
    assert get(downloader) == CONTENT, "it recovers"
    assert get(downloader) == CONTENT


def test_a_server_that_does_not_answer_holds_up_one_request_only(
    make: Make, first: Web, second: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = no_connection(monkeypatch, first.url)
    downloader = make([first.url, second.url])
    second.spoil("missing", lambda body: Answer(body, status=404))
    with pytest.raises(FetchError):
        get(downloader, "missing")
    assert get(downloader) == CONTENT
    assert len(tried) == 2, "one request and its repetition"


def test_refused_connections_cost_nothing_and_stop_nobody(make: Make, first: Web, clock: Time) -> None:
    first.stop()
    downloader = make([first.url])
    with pytest.raises(FetchError, match="refused"):
        get(downloader)
    clock.meanwhile = first.start
    assert get(downloader) == CONTENT, "the next request has its own patience"


# What failures mean


@pytest.mark.parametrize(
    ("status", "direct", "proxied", "passing"),
    [
        (404, Fault.OBJECT, Fault.OBJECT, False),
        (400, Fault.HOST, Fault.HOST, False),
        (500, Fault.HOST, Fault.HOST, False),
        (503, Fault.HOST, Fault.HOST, True),
        (429, Fault.HOST, Fault.HOST, True),
        (302, Fault.HOST, Fault.HOST, False),
        (403, Fault.HOST, Fault.PROXY, False),
        (407, Fault.HOST, Fault.PROXY, False),
    ],
)
def test_whose_fault_a_status_is(status: int, direct: Fault, proxied: Fault, passing: bool) -> None:
    assert of_status(status, Route("http://a", DIRECT)) == Verdict(direct, passing)
    assert of_status(status, Route("http://a", "http://p")) == Verdict(proxied, passing)


@pytest.mark.parametrize(
    ("error", "connecting", "passing", "contact"),
    [
        (ConnectionRefusedError(111, "refused"), True, True, Contact.REFUSED),
        (TimeoutError("timed out"), True, True, Contact.NONE),
        (OSError(113, "No route to host"), True, True, Contact.NONE),
        (socket.gaierror(-2, "Name or service not known"), True, False, Contact.NONE),
        (TimeoutError("timed out"), False, True, Contact.MADE),
        (ConnectionResetError(104, "reset"), False, True, Contact.MADE),
        (http.client.BadStatusLine("?"), False, True, Contact.MADE),
        (ssl.SSLError(1, "handshake"), True, True, Contact.MADE),
    ],
)
def test_whose_fault_an_exception_is(error: BaseException, connecting: bool, passing: bool, contact: Contact) -> None:
    assert of_error(error, Route("http://a", DIRECT), connecting=connecting) == Verdict(Fault.HOST, passing, contact)
    assert of_error(error, Route("http://a", "http://p"), connecting=connecting) == Verdict(Fault.PROXY, passing, contact)


def test_a_proxy_that_makes_no_tunnel() -> None:
    route = Route("https://a", "http://p")
    assert of_error(OSError("Tunnel connection failed: 403 Forbidden"), route, connecting=True) == Verdict(Fault.PROXY)
    assert of_error(OSError("Tunnel connection failed: 503 Gone"), route, connecting=True) == Verdict(Fault.HOST, passing=True)
    assert of_error(ssl.SSLCertVerificationError(1, "expired"), route, connecting=True) == Verdict(Fault.HOST)


def test_first_choice_again_after_a_while() -> None:
    now = [0.0]
    rotation = Rotation([["a"], ["b"], ["c"]], 300, lambda: now[0])
    rotation.failed("a")
    rotation.failed("a")  # an older request's failure says nothing about b
    assert rotation.order() == ["b", "c", "a"]
    now[0] = 299
    rotation.failed("b")
    assert rotation.order()[0] == "c"
    now[0] = 598
    assert rotation.order()[0] == "c"
    now[0] = 599
    assert rotation.order() == ["a", "b", "c"]


def test_servers() -> None:
    assert parse_servers("http://a/cvmfs/@fqrn@;https://b:81/@org@/;,http://c/x", "sw.grid.test") == [
        "http://a/cvmfs/sw.grid.test",
        "https://b:81/sw",
        "http://c/x",
    ]


def test_proxies() -> None:
    assert parse_proxies("http://a:3128|b:3128;direct;;") == [["http://a:3128", "http://b:3128"], ["DIRECT"]]
    assert parse_proxies("http://a:3128;DIRECT", "http://b:1;DIRECT") == [["http://a:3128"], ["http://b:1"]], (
        "as the official client has it"
    )


@pytest.mark.parametrize("text", ["", ";", "ftp://a", "http://", "http://a b", "a", "http://a:99999/"])
def test_wrong_servers(text: str) -> None:
    with pytest.raises(InputError, match="CVMFS_SERVER_URL"):
        parse_servers(text, "sw.grid.test")


@pytest.mark.parametrize("text", ["", "|;", "https://a", "http://a:x", "auto://", "auto;DIRECT", "http://a:1|auto"])
def test_wrong_proxies(text: str) -> None:
    with pytest.raises(InputError, match="CVMFS_HTTP_PROXY"):
        parse_proxies(text)

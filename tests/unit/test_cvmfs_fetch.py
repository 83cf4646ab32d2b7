"""Downloads: who is asked, who is asked next, and how soon it is given up."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvmfs_web import Answer, Web, serving
from gridstead.cvmfs.client.fetch import (
    DIRECT,
    Downloader,
    FetchError,
    MissingError,
    OfflineError,
    Rotation,
    Timing,
    parse_proxies,
    parse_servers,
)
from gridstead.cvmfs.errors import CorruptObjectError, InputError

CONTENT = random.Random(1).randbytes(600_000)  # noqa: S311 - the same in every run
TIMING = Timing(proxy=0.4, direct=0.5, retries=1, backoff_first=0.3, backoff_most=1.0)


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
    try:
        return downloader.get(path, checked)
    finally:
        downloader.close()


def direct(*servers: str) -> Downloader:
    return Downloader(servers, [[DIRECT]], TIMING)


def test_one_connection_for_many_files(first: Web) -> None:
    downloader = direct(first.url)
    for _ in range(20):
        assert downloader.get("object", checked) == CONTENT
    assert len(first._connections) == 1, "kept open between requests"
    downloader.close()


def test_a_connection_that_the_server_closed_meanwhile(first: Web) -> None:
    downloader = direct(first.url)
    downloader.get("object", checked)
    first.stop()
    first.start()
    assert get(downloader) == CONTENT
    assert downloader.hosts.order()[0] == first.url


@pytest.mark.parametrize("status", [403, 500, 502, 503, 504])
def test_next_server_after_an_error(first: Web, second: Web, status: int) -> None:
    first.spoil("object", lambda body: Answer(body, status=status))
    downloader = direct(first.url, second.url)
    assert get(downloader) == CONTENT
    assert downloader.hosts.order()[0] == second.url, "it stays with the one that works"


def test_next_server_when_a_file_is_missing(first: Web, second: Web) -> None:
    first.spoil("object", lambda _: Answer(b"?", status=404))
    downloader = direct(first.url, second.url)
    assert get(downloader) == CONTENT
    assert downloader.hosts.order()[0] == first.url, "one missing file is no reason to leave a server"


def test_missing_everywhere(first: Web, second: Web) -> None:
    downloader = direct(first.url, second.url)
    with pytest.raises(MissingError, match="does not have it"):
        get(downloader, "nothing")
    assert get(downloader) == CONTENT, "that is no reason to wait"


def test_nobody_listens_at_the_first(second: Web) -> None:
    assert get(direct(nowhere(), second.url)) == CONTENT


def test_no_answer_from_the_first(silent: str, second: Web) -> None:
    began = time.monotonic()
    assert get(direct(silent, second.url)) == CONTENT
    assert time.monotonic() - began < 3 * TIMING.direct


@pytest.mark.parametrize(
    "answer",
    [
        lambda body: Answer(body[:1000], length=len(body)),
        lambda _: Answer(close=True),
        lambda body: Answer(body[:300], length=len(body), pause=0.01),
    ],
    ids=["truncated", "closed", "trickling"],
)
def test_a_transfer_that_breaks_is_repeated_then_left(first: Web, second: Web, answer: object) -> None:
    first.spoil("object", answer, times=1)  # type: ignore[arg-type]
    downloader = direct(first.url, second.url)
    assert get(downloader) == CONTENT
    first.spoil("object", answer)  # type: ignore[arg-type]
    assert get(downloader) == CONTENT
    assert downloader.hosts.order()[0] == second.url


def test_too_slow(first: Web, second: Web) -> None:
    """A server that sends a byte now and then never runs into the timeout of one read."""
    first.spoil("object", lambda body: Answer(body, pause=0.05))
    began = time.monotonic()
    assert get(Downloader([first.url, second.url], [[DIRECT]], Timing(direct=0.3, retries=0, low_speed=1024))) == CONTENT
    assert time.monotonic() - began < 3


def test_wrong_bytes_are_asked_for_again_without_caches(first: Web) -> None:
    first.spoil("object", lambda body: Answer(body[:-1] + b"?"), times=1)
    assert get(direct(first.url)) == CONTENT
    assert [headers.get("Cache-Control") for headers in first.headers] == [None, "no-cache"]


def test_wrong_bytes_from_one_server(first: Web, second: Web) -> None:
    first.spoil("object", lambda body: Answer(body[:-1] + b"?"))
    assert get(direct(first.url, second.url)) == CONTENT


def test_wrong_bytes_from_all(first: Web, second: Web) -> None:
    for web in (first, second):
        web.spoil("object", lambda body: Answer(b"?" + body))
    with pytest.raises(CorruptObjectError, match="that are wrong"):
        get(direct(first.url, second.url))


def test_through_a_proxy(first: Web, proxy: Web) -> None:
    assert get(Downloader([first.url], [[proxy.url]], TIMING)) == CONTENT
    assert proxy.requests == [f"{first.url}/object"]


def test_proxys_password(first: Web, proxy: Web) -> None:
    url = proxy.url.replace("http://", "http://us%40er:se:cret@")
    assert get(Downloader([first.url], [[url]], TIMING)) == CONTENT
    assert proxy.headers[0]["Proxy-Authorization"] == "Basic dXNAZXI6c2U6Y3JldA=="
    proxy.stop()
    with pytest.raises(FetchError) as caught:
        get(Downloader([first.url], [[url]], TIMING))
    assert "cret" not in str(caught.value)


def test_proxies_of_a_group_share_the_load(first: Web, proxy: Web, second: Web) -> None:
    used = {Downloader([first.url], [[proxy.url, second.url]], TIMING).proxies.order()[0] for _ in range(64)}
    assert used == {proxy.url, second.url}


def test_next_proxy_then_next_group(first: Web, proxy: Web) -> None:
    dead, deader = nowhere(), nowhere()
    downloader = Downloader([first.url], [[dead, deader], [proxy.url], [DIRECT]], TIMING)
    assert get(downloader) == CONTENT
    assert downloader.proxies.order()[0] == proxy.url
    proxy.stop()
    assert get(downloader) == CONTENT
    assert downloader.proxies.order()[0] == DIRECT
    assert first.requests[-1] == "/object"


def test_a_dead_server_behind_a_good_proxy(second: Web, proxy: Web) -> None:
    """The proxy's 503 is the server's fault: the proxy stays."""
    downloader = Downloader([nowhere(), second.url], [[proxy.url], [DIRECT]], TIMING)
    assert get(downloader) == CONTENT
    assert downloader.proxies.order()[0] == proxy.url
    assert downloader.hosts.order()[0] == second.url


def test_a_silent_server_behind_a_proxy(first: Web, second: Web, proxy: Web) -> None:
    """Whose fault the silence is cannot be known: the other server is tried through the same proxy as well."""
    proxy.fault = lambda path, _: Answer(close=True, delay=2) if path.startswith(first.url) else None
    assert get(Downloader([first.url, second.url], [[proxy.url]], TIMING)) == CONTENT


def test_wrong_bytes_in_a_proxys_cache(first: Web, proxy: Web) -> None:
    proxy.spoil("object", lambda body: Answer(b"?" + body), times=1)
    assert get(Downloader([first.url], [[proxy.url]], TIMING)) == CONTENT
    assert proxy.headers[1]["Cache-Control"] == "no-cache"
    assert proxy.headers[1]["Pragma"] == "no-cache"


def test_part_of_a_file(first: Web) -> None:
    downloader = direct(first.url)
    assert downloader.get("object", whole, span=(1000, 50)) == CONTENT[1000:1050]
    downloader.close()


def test_when_all_is_down_it_fails_at_once_and_recovers(first: Web, silent: str) -> None:
    first.stop()
    downloader = direct(silent, first.url)
    with pytest.raises(FetchError) as caught:
        get(downloader)
    assert not isinstance(caught.value, OfflineError)
    began = time.monotonic()
    for _ in range(100):
        with pytest.raises(OfflineError, match="a moment ago"):
            get(downloader)
    assert time.monotonic() - began < TIMING.backoff_first
    first.start()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            assert get(downloader) == CONTENT
            break
        except FetchError:
            time.sleep(0.05)
    else:
        pytest.fail("it never recovered")


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


@pytest.mark.parametrize("text", ["", ";", "ftp://a", "http://", "http://a b", "a", "http://a:99999/"])
def test_wrong_servers(text: str) -> None:
    with pytest.raises(InputError, match="CVMFS_SERVER_URL"):
        parse_servers(text, "sw.grid.test")


@pytest.mark.parametrize("text", ["", "|;", "https://a", "http://a:x", "auto://"])
def test_wrong_proxies(text: str) -> None:
    with pytest.raises(InputError, match="CVMFS_HTTP_PROXY"):
        parse_proxies(text)

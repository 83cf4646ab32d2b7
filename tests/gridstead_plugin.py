"""pytest here: a time limit for each test, only expected skips in a whole run, evidence of failures, an orderly end.

Loaded by the checkout's conftest.py, for tests/ and for the roles' scenarios.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

import evidence
import skips

if TYPE_CHECKING:
    from collections.abc import Generator

#: Seconds that a test may take with its fixtures, by where it lies: the first that fits. What takes longer hangs.
LIMITS_S = (
    ("tests/unit/", 180),
    ("tests/conformance/", 600),
    ("tests/cloud/", 2400),
    ("tests/", 1200),
    ("roles/", 600),
)
#: Fixtures whose value is, or leads to, a site of which a failed test's evidence is kept.
SITES = ("upgraded", "whole", "inner", "small", "fresh", "site")
#: Evidence of so many failures a run: what fails by the dozen fails for one reason.
KEPT = 4


def pytest_configure(config: pytest.Config) -> None:
    """Set up what a run has from its beginning."""
    config.addinivalue_line("markers", "machine: needs this machine's podman for itself; runs beside no other part")
    _profiles(config)
    if hasattr(config, "workerinput"):
        return  # its controller ends it
    # At the runner's word: where every thread is; and an end through every fixture's own end.
    with contextlib.suppress(OSError, ValueError):  # standard error may be no file
        faulthandler.register(signal.SIGUSR1, file=os.fdopen(os.dup(sys.__stderr__.fileno()), "w"), all_threads=True)  # type: ignore[union-attr]
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(_number: int, _frame: object) -> NoReturn:
    # Once: a second signal must not cut the clean-up short.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt("SIGTERM")


def _profiles(config: pytest.Config) -> None:
    """Property tests try the same examples each time, as a gate must; ``--hypothesis-profile=explore`` tries others (part long)."""
    try:
        from hypothesis import HealthCheck, settings
    except ImportError:
        return  # an operator's environment, which has no such tests
    calm = {"deadline": None, "database": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
    settings.register_profile("gate", derandomize=True, **calm)  # type: ignore[arg-type]
    settings.register_profile("explore", derandomize=False, **calm)  # type: ignore[arg-type]
    settings.load_profile(config.getoption("--hypothesis-profile", default=None) or "gate")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each test its limit, where pytest-timeout is there: an operator's environment is without it."""
    if not config.pluginmanager.hasplugin("timeout"):
        return
    for item in items:
        limit = next((seconds for start, seconds in LIMITS_S if item.nodeid.startswith(start)), None)
        if limit and not item.get_closest_marker("timeout") and not config.getoption("timeout", default=None):
            item.add_marker(pytest.mark.timeout(limit))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip that nobody expects into a failure, in a whole run; keep a failed test's evidence before its site goes."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and skips.strict():
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not skips.expected(item.nodeid, reason.removeprefix("Skipped: ")):
            report.outcome = "failed"
            report.longrepr = f"not expected to be skipped: {reason}\n(tests/expected_skips.txt names what may be)"
    if report.failed and report.when in ("setup", "call"):
        _keep(item, report)
    return report


def _keep(item: pytest.Item, report: pytest.TestReport) -> None:
    values: dict[str, Any] = getattr(item, "funcargs", {})
    kept = item.config.stash.setdefault(_KEPT, [0])
    where = next((found for name in SITES if (found := evidence.argument(values.get(name)))), None)
    if where is None or kept[0] >= KEPT:
        return
    kept[0] += 1
    report.sections.append(("Evidence", evidence.keep(where, item.name)))


_KEPT = pytest.StashKey[list[int]]()

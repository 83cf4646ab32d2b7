"""CONTRIBUTING.md: every command on it works, and what it names is there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import scenarios
from parts import PARTS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line, comments=True) for line in re.findall(r"(?m)^    (tools/.*)$", PAGE)]
#: The tests that a part hands its arguments to.
_TESTS = {"unit": "tests/unit", "conformance": "tests/conformance", "e2e": "tests/e2e", "faults": "tests/faults"}


def test_there_are_commands() -> None:
    """The page is read as it is meant: indented lines that begin with tools/ are commands."""
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] != "tools/test" or words[1:] == ["--list"]], ids=shlex.join)
def test_commands_that_only_look(words: list[str]) -> None:
    """They are run as they stand."""
    done = subprocess.run([ROOT / words[0], *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "tools/test" and words[1:] != ["--list"]], ids=shlex.join)
def test_commands_that_test(words: list[str]) -> None:
    """A whole run of the tests has what they run: the part has a lane, the role a scenario, and -k finds a test."""
    match words[1:]:
        case [] | ["--changed"]:  # what the latter selects: test_test_suite
            return
        case ["molecule", *roles]:
            assert set(roles) <= set(scenarios.of_roles())
        case [part]:
            assert PARTS[part].lane
        case [part, "-k", expression]:
            assert PARTS[part].lane
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", _TESTS[part], "-k", expression],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, done.stdout  # 5 where nothing is selected
            # All words of it count: one that finds nothing says that its tests have another name.
            for word in re.findall(r"\b(?!or\b|and\b|not\b)\w+", expression):
                assert word in done.stdout, f"no test is called {word}"
        case _:
            pytest.fail(f"what is {shlex.join(words)}? Teach this test how to look at it")


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:tools|roles|playbooks|tests|inventories)/[\w./]*)`", PAGE))))
def test_what_it_names_is_there(name: str) -> None:
    """Directories and files; NAME stands for the reader's own."""
    if "NAME" not in name:
        assert (ROOT / name).exists()

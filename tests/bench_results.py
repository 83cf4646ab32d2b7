"""Where the benches keep what they measured, for the next one to be compared with: .cache/bench-NAME.json, never committed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent


def keep(name: str, values: Any) -> None:
    """Write one bench's values.

    Args:
        name: the bench's.
        values: what JSON can hold.
    """
    target = _ROOT / ".cache" / f"bench-{name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(values, indent=2) + "\n")

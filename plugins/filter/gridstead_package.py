"""The checkout's package as text that a node can unpack."""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import io
import tarfile
from pathlib import Path


@functools.lru_cache(maxsize=4)
def _build(source: Path, parts: tuple[str, ...]) -> dict[str, str]:
    files = [source / "__init__.py"]
    for part in parts:
        found = sorted((source / part).rglob("*.py"))
        if not found:
            message = f"there is no package {part} in {source}"
            raise ValueError(message)
        files += found
    archive = io.BytesIO()
    # The same files give the same bytes, whoever packs them and when.
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for file in files:
            member = tarfile.TarInfo(f"gridstead/{file.relative_to(source)}")
            content = file.read_bytes()
            member.size, member.mode = len(content), 0o644
            tar.addfile(member, io.BytesIO(content))
    data = archive.getvalue()
    return {
        "digest": hashlib.sha256(data).hexdigest()[:16],
        "archive": base64.b64encode(gzip.compress(data, mtime=0)).decode(),
    }


def gridstead_package(source: str, parts: list[str]) -> dict[str, str]:
    """Pack the package.

    Args:
        source: its directory.
        parts: the sub-packages wanted.

    Returns:
        ``digest`` of the content, and ``archive``: tar, gzip, base64.
    """
    return _build(Path(source).resolve(), tuple(parts))


class FilterModule:
    """The filters of this file, as Ansible asks for them."""

    def filters(self) -> dict[str, object]:
        """Filters by name."""
        return {"gridstead_package": gridstead_package}

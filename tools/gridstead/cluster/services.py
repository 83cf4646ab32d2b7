"""The services that nodes can offer, and what each needs where: ``playbooks/vars/services.yml``, which the roles' check reads too."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from ruamel.yaml import YAML

from gridstead.cluster.paths import ROOT

TABLE = ROOT / "playbooks" / "vars" / "services.yml"


class Need(BaseModel):
    """What a service cannot work without.

    Args:
        where: ``site``: one of the services on any node; ``node``: one of them on the same node; ``share``: the nodes of these
            services see the shared directories that its own node sees.
        of: the services; of those on the same node the first is what to add.
        reason: what for, in words (``for`` in the table).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    where: Literal["site", "node", "share"]
    of: tuple[str, ...] = Field(min_length=1)
    reason: str = Field(alias="for")


class Service(BaseModel):
    """What a node can offer.

    Args:
        text: what it does.
        state: what its node holds that cannot be made again; empty for nothing.
        single: whether only one node of a site may offer it.
        needs: what it cannot work without.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    state: str = ""
    single: bool = False
    needs: tuple[Need, ...] = ()


def _read() -> dict[str, Service]:
    table = YAML(typ="safe", pure=True).load(TABLE.read_text(encoding="utf-8"))["services"]
    return {name: Service.model_validate(content) for name, content in table.items()}


#: By name, in the order in which data flows.
SERVICES = _read()

"""The connection to a cloud: who we are, and patience with its errors."""

from __future__ import annotations

import functools
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import openstack
from keystoneauth1 import exceptions as identity
from openstack import exceptions

from gridstead.cluster.errors import GridsteadError, InputError, PreflightError
from gridstead.cluster.providers.openstack.turns import Turns
from gridstead.cluster.spec import OpenStack

T = TypeVar("T")

#: Calls under way at once: what a small cloud's API bears without slowing down.
CALLS_AT_ONCE = 8
#: Seconds between the tries of a call that failed for the moment; 30 s in all, then it has failed. The tests of what a cloud does
#: wrong have them shorter: they know when it ends.
PAUSES = tuple(float(pause) for pause in os.environ.get("GRIDSTEAD_CLOUD_PAUSES", "0.3 0.7 1.5 3 5 8 12").split())
#: Answers that may be different the next time: too many requests, and what stands between us and the service.
PASSING = frozenset({429, 500, 502, 503, 504})
#: Seconds for one answer. A creation given up too early goes on without us, and a second one makes two.
ANSWER_LIMIT = 300.0
#: Answers after which what was asked for may be done all the same: whoever stands before the service gave up waiting for it.
LOST = frozenset({502, 504})
#: Seconds between the looks for what a lost answer was about, before it is asked for again: the cloud may still be at it.
LOST_ANSWER_PAUSES = (2.0, 3.0, 5.0)


class Cloud:
    """One project of one cloud.

    Args:
        settings: which cloud; credentials come from clouds.yaml or OS_* variables and stay in openstacksdk.
        declaration: the file that says which, for messages.
    """

    def __init__(self, settings: OpenStack, declaration: Path | None = None) -> None:
        self.settings, self.declaration = settings, declaration
        self._bound = Turns(CALLS_AT_ONCE)

    @functools.cached_property
    def connection(self) -> Any:
        """The openstacksdk connection, authorized.

        Raises:
            InputError: no such cloud is configured.
            PreflightError: the cloud does not answer, or refuses the credentials.
        """
        name = self.settings.cloud
        try:
            # api_timeout is what one answer may take; nothing is repeated below us, where a lost answer to a creation
            # would be a second creation.
            connection = openstack.connect(cloud=name, region_name=self.settings.region, api_timeout=ANSWER_LIMIT, app_name="gridstead")
            self(connection.session.get_token, what="log in")
        except exceptions.ConfigException as error:
            raise InputError(
                f"no cloud to use: {error}",
                file=self.declaration,
                key="openstack.cloud",
                hint="name an entry of clouds.yaml there or in OS_CLOUD, or set the OS_* variables",
            ) from None
        except (identity.MissingRequiredOptions, identity.NoMatchingPlugin) as error:
            raise InputError(f"the cloud's settings are not complete: {error}", file=self.declaration, key="openstack.cloud") from None
        return connection

    @functools.cached_property
    def services(self) -> Any:
        """The connection with every service looked up: openstacksdk does that at first use, in each thread that is the first.

        Of the two services whose calls negotiate a microversion that takes the service's own description too.
        """
        connection = self.connection
        for service in ("network", "image"):
            self(getattr(connection, service).get_endpoint, what=f"look up {service}")
        for service in ("compute", "block_storage"):
            self(getattr(connection, service).get_endpoint_data, what=f"look up {service}")
        return connection

    @property
    def project(self) -> str:
        """The project's id."""
        return str(self.connection.current_project_id)

    def __call__(self, call: Callable[[], T], *, what: str, conflict: bool = False) -> T:
        """Make an API call, again when the cloud could not answer it for the moment.

        Args:
            call: makes the call; it must be one that may be made twice.
            what: what it does, for the error.
            conflict: also try again on 409: another operation on the same resource is about to end.

        Raises:
            NotThereError: there is no such resource.
            GridsteadError: it failed, in the cloud's words.
        """
        for pause in (*PAUSES, None):
            try:
                with self._bound:
                    return call()
            except exceptions.NotFoundException as error:
                raise NotThereError(what, error) from None
            except identity.Unauthorized as error:
                raise PreflightError(
                    f"the cloud refuses the credentials: {error.message}", hint="see clouds.yaml, or the OS_* variables"
                ) from None
            except (exceptions.SDKException, identity.ClientException) as error:
                if isinstance(error, exceptions.ConfigException | identity.MissingRequiredOptions):
                    raise
                if pause is None or not passing(error, conflict=conflict):
                    raise CloudError(what, error) from None
                time.sleep(_retry_after(error) or pause * random.uniform(0.8, 1.2))  # noqa: S311 - spreads the tries of many threads
        raise AssertionError("the last try returns or raises")

    def make(self, find: Callable[[], T | None], create: Callable[[], T], *, what: str) -> T:
        """Create a resource once, also when the answer to the creation is lost.

        Args:
            find: looks for it by the mark it is created with.
            create: creates it; only called again after ``find`` has not found it.
            what: what it is, for the error.
        """
        for pause in (*PAUSES, None):
            try:
                with self._bound:
                    return create()
            except (exceptions.SDKException, identity.ClientException) as error:
                if pause is None or not passing(error, conflict=True):
                    raise CloudError(f"create {what}", error) from None
                lost = _status(error) is None or _status(error) in LOST
                looks = LOST_ANSWER_PAUSES if lost else (_retry_after(error) or pause,)
            for wait in looks:
                time.sleep(wait)
                if (found := self(find, what=f"look for {what}")) is not None:
                    return found
        raise AssertionError("the last try returns or raises")

    def gone(self, delete: Callable[..., Any], *arguments: Any, what: str) -> None:
        """Delete a resource; gone already is well.

        Raises:
            GridsteadError: the cloud keeps it.
        """
        try:
            self(lambda: delete(*arguments, ignore_missing=False), what=f"delete {what}", conflict=True)
        except NotThereError:
            return


class CloudError(GridsteadError):
    """The cloud said no, or nothing.

    Args:
        what: what was to be done.
        error: what came of it.
    """

    def __init__(self, what: str, error: Exception) -> None:
        self.status = _status(error)
        details = getattr(error, "details", None) or getattr(error, "message", None) or str(error)
        text = " ".join(str(details).split())
        super().__init__(f"{what}: {f'{self.status}: ' if self.status else ''}{text[:500]}")


class NotThereError(CloudError):
    """What was to be asked or changed is not there, or not any more."""

    def __init__(self, what: str, error: Exception) -> None:
        super().__init__(what, error)
        self.hint = "someone else deletes things here; `tools/cluster up` looks again and makes what is missing"


def _status(error: Exception) -> int | None:
    return getattr(error, "status_code", None) or getattr(error, "http_status", None)


def passing(error: Exception, *, conflict: bool) -> bool:
    """Whether the same call may succeed a little later."""
    if isinstance(error, identity.ConnectionError | identity.DiscoveryFailure):
        return True
    if "uota" in str(error):  # neutron says 409 for it, cinder 413, nova 403
        return False
    status = _status(error)
    return status in PASSING or (conflict and status == 409)


def _retry_after(error: Exception) -> float | None:
    response = getattr(error, "response", None)
    wish = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(wish), 30.0) if wish.isdigit() else None

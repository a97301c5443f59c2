"""One look at a container: does it answer, does it let us in, what does its clock say, when does the credential end.

One request, one try, under one deadline; nothing is written. `diagnose` is for finding out why.
"""

import http.client
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from amlmount.config.store_models import LocalStore, parse_store
from amlmount.errors import AmlmountError, ConfigError
from amlmount.stores.azure.auth import Authorizer, Bearer, Sas
from amlmount.stores.azure.credentials import authorize, locate_store
from amlmount.stores.azure.diagnose import time_of
from amlmount.stores.azure.failures import Attempted, clock_error_s, explain, explain_network, refusal_from
from amlmount.stores.azure.timing import Deadline, Timing
from amlmount.stores.azure.transport import Pool, Request


@dataclass(frozen=True, slots=True)
class Checkup:
    """What one look found. `error`: why the store did not do what was asked, None if it did.

    `is_reached`: it answered, whatever it said; None: it was not asked, because there was no credential to ask with.
    `credential_from_s` and `credential_until_s` in seconds since 1970, None where it has no such limit. `renews`: the
    credential is renewed by itself before it ends.
    """

    error: AmlmountError | None
    is_reached: bool | None
    clock_error_s: float | None = None
    credential: str = ""
    credential_from_s: float | None = None
    credential_until_s: float | None = None
    renews: bool = False


class Examiner:
    """Looks at one container again and again. Belongs to one thread at a time."""

    def __init__(self, definition: Mapping[str, object], prefix: str = "") -> None:
        """`prefix`: what is listed, one name of it. Raises ConfigError for an impossible address."""
        store = parse_store(dict(definition))
        if isinstance(store, LocalStore):
            raise ConfigError("cannot examine a local store as an Azure container", hint="set type: azure_blob")
        self._store, self._where = store, locate_store(store)
        self._query = {"restype": "container", "comp": "list", "maxresults": "1"} | (
            {"prefix": prefix} if prefix else {}
        )
        self._bearer: Bearer | None = None

    def look(self, timeout_s: float) -> Checkup:
        """Ask once. Raises nothing of its own, and returns within about `timeout_s` if the name resolves by then."""
        try:
            authorizer = self._authorizer()
            request = authorizer.dress(Request("GET", self._where.container_path, self._query))
        except AmlmountError as error:
            return Checkup(error, None)
        return self._with_limits(authorizer, self._ask(authorizer, request, timeout_s))

    def _authorizer(self) -> Authorizer:
        """Resolve the credential anew, so that a new SAS is seen; tokens are kept until they are renewed."""
        if self._bearer is not None:
            return self._bearer
        found = authorize(self._store, self._where)
        self._bearer = found if isinstance(found, Bearer) else None
        return found

    def _ask(self, authorizer: Authorizer, request: Request, timeout_s: float) -> Checkup:
        attempted = Attempted("list", self._where, credential=authorizer.kind)
        pool = self._new_pool(timeout_s)
        try:
            with pool.send(request, Deadline(timeout_s)).response() as reply:
                error_s = clock_error_s(reply.headers)
                if reply.status < 300:
                    reply.read()
                    return Checkup(None, True, error_s)
                refusal = refusal_from(reply.status, reply.headers, reply.read())
        except (OSError, http.client.HTTPException, AmlmountError) as error:
            return Checkup(explain_network(error, attempted), False)
        finally:
            pool.close()
        if refusal.status in (401, 403):
            authorizer.forget()
        return Checkup(explain(refusal, attempted), True, error_s)

    def _new_pool(self, timeout_s: float) -> Pool:
        """A connection of its own for each look: one that is kept says nothing of name, route and firewall."""
        timing = Timing(connect_s=timeout_s, silence_s=timeout_s, request_s=timeout_s, call_s=timeout_s, attempts=1)
        return Pool(self._where.scheme, self._where.host, self._where.port, timing)

    def _with_limits(self, authorizer: Authorizer, found: Checkup) -> Checkup:
        if isinstance(authorizer, Sas):
            begins, ends = (time_of(authorizer.fields.get(name)) for name in ("st", "se"))
            return replace(found, credential="SAS", credential_from_s=begins, credential_until_s=ends)
        if isinstance(authorizer, Bearer):
            try:
                ends = authorizer.tokens.get().expires_at_s if found.error is None else None
            except AmlmountError:
                ends = time.time()
            return replace(found, credential=authorizer.kind, credential_until_s=ends, renews=True)
        return replace(found, credential=authorizer.kind)

"""The careful client: one request of the Blob service with retries, throttling, renewed credentials and a reason.

`stores/azure/store.py` says what to ask; this says how to keep asking, and when to give up.
"""

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from amlmount.errors import AccessDeniedError, AmlmountError, NetworkError, ThrottledError
from amlmount.stores.azure.auth import Authorizer
from amlmount.stores.azure.failures import Attempted, DamagedBodyError, Refusal, explain, explain_network, refusal_from
from amlmount.stores.azure.location import Location
from amlmount.stores.azure.throttle import Gate, backoff_s
from amlmount.stores.azure.timing import Deadline, Timing
from amlmount.stores.azure.transport import Exchange, Pool, Request, Response, StaleConnectionError

T = TypeVar("T")
Reader = Callable[[Response], T]


class RestClient:
    """Asks one account. `authorize` resolves the credential: called at first use, and again after a refusal."""

    def __init__(self, location: Location, authorize: Callable[[], Authorizer], timing: Timing, pool: Pool) -> None:
        self.location, self.timing = location, timing
        self.gate = Gate(timing.max_backoff_s / 40)
        self._authorize, self._pool = authorize, pool
        self._authorizer: Authorizer | None = None
        self._lock = threading.Lock()

    @property
    def authorizer(self) -> Authorizer:
        """The present credential. Raises what resolving it raises."""
        present = self._authorizer
        if present is not None:
            return present
        with self._lock:
            if self._authorizer is None:
                self._authorizer = self._authorize()
            return self._authorizer

    def attempted(self, verb: str, name: str | None = None) -> Attempted:
        """Describe what is about to be done, for errors."""
        return Attempted(verb, self.location, name)

    def start(self, request: Request) -> Exchange | None:
        """Send a request ahead of need; None when that does not work right now."""
        try:
            return self._pool.send(self.authorizer.dress(request), Deadline(self.timing.request_s))
        except (OSError, http.client.HTTPException, AmlmountError):
            return None

    def call(
        self,
        request: Request,
        attempted: Attempted,
        read: Reader[T],
        *,
        deadline: Deadline | None = None,
        first: Exchange | None = None,
    ) -> T:
        """Ask until there is an answer, and hand it to `read`, which may raise DamagedBodyError.

        `first` is a request already sent by `start`. Raises the errors of `failures.explain`; their
        `details["repeated"]` is true when an earlier attempt may have been carried out without our knowing.
        """
        attempts = _Attempts(self, attempted, deadline or Deadline(self.timing.call_s))
        while True:
            try:
                result = self._once(request, read, attempts, first)
            except (Refusal, OSError, http.client.HTTPException, DamagedBodyError) as error:
                first = None
                attempts.failed(error)
            except AmlmountError as error:
                raise attempts.last_error(error) from None
            else:
                self.gate.succeeded()
                return result

    def renew(self, refused: Authorizer) -> bool:
        """Resolve the credential again; say whether it is worth another try."""
        refused.forget()
        with self._lock:
            if self._authorizer is not refused:
                return True
        try:
            fresh = self._authorize()
        except AmlmountError:
            return False
        is_new = fresh.fingerprint() != refused.fingerprint()
        with self._lock:
            self._authorizer = fresh if is_new else refused
        return is_new

    def close(self) -> None:
        """Close idle connections."""
        self._pool.close()

    def _once(self, request: Request, read: Reader[T], attempts: "_Attempts", first: Exchange | None) -> T:
        if first is None:
            self.gate.enter(attempts.deadline)
        attempts.authorizer = self.authorizer
        budget = attempts.deadline.within(self.timing.request_s)
        exchange = first or self._pool.send(attempts.authorizer.dress(request), budget, fresh=attempts.was_stale)
        with exchange.response() as response:
            if response.status >= 300:
                body = b"" if request.method == "HEAD" else response.read()
                raise refusal_from(response.status, response.headers, body)
            return read(response)


class _Attempts:
    """What has gone wrong so far in one call, and whether to go on."""

    def __init__(self, client: RestClient, attempted: Attempted, deadline: Deadline) -> None:
        self._client, self._attempted, self.deadline = client, attempted, deadline
        self.authorizer: Authorizer | None = None
        self.was_stale = False
        self._count = 0
        self._has_renewed = False
        self._is_repeated = False
        self._last: AmlmountError | None = None

    def failed(self, error: Exception) -> None:
        """Wait before the next attempt, or raise what there is to say."""
        if isinstance(error, StaleConnectionError) and not self.was_stale:
            self.was_stale = self._is_repeated = True
            return
        self.was_stale = False
        self._last = self._explained(error)
        if isinstance(error, Refusal):
            self._refused(error)
        else:
            self._broken(error)

    def last_error(self, error: AmlmountError) -> AmlmountError:
        """Return what to raise when `error` ended the call: the reason of the attempts before it, if any."""
        final = self._last if self._last is not None and isinstance(error, NetworkError) else error
        if isinstance(error, ThrottledError) and not isinstance(final, ThrottledError):
            final = error
        return self._marked(final)

    def _explained(self, error: Exception) -> AmlmountError:
        if self.authorizer is not None:
            self._attempted = Attempted(
                self._attempted.verb, self._attempted.location, self._attempted.name, self.authorizer.kind
            )
        if isinstance(error, Refusal):
            return explain(error, self._attempted)
        return explain_network(error, self._attempted)

    def _refused(self, refusal: Refusal) -> None:
        assert self._last is not None
        if refusal.is_throttle:
            wait_s = refusal.retry_after_s or 0.0
            self._client.gate.throttled(max(wait_s, backoff_s(self._count, self._client.timing)))
            self._count += 1
            return
        if refusal.status in (401, 403) and not self._has_renewed and self.authorizer is not None:
            self._has_renewed = True
            if isinstance(self._last, AccessDeniedError) and self._client.renew(self.authorizer):
                return
        if not refusal.may_pass:
            raise self._marked(self._last) from None
        self._pause()

    def _broken(self, error: Exception) -> None:
        assert self._last is not None
        if isinstance(error, ssl.SSLCertVerificationError) or _is_unknown_name(error):
            raise self._marked(self._last) from None
        self._pause()

    def _pause(self) -> None:
        assert self._last is not None
        self._is_repeated = True
        wait_s = backoff_s(self._count, self._client.timing)
        self._count += 1
        if self._count >= self._client.timing.attempts or wait_s >= self.deadline.left_s():
            raise self._marked(self._last) from None
        time.sleep(wait_s)

    def _marked(self, error: AmlmountError) -> AmlmountError:
        if self._is_repeated:
            error.details["repeated"] = True
        return error


def _is_unknown_name(error: Exception) -> bool:
    return isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN

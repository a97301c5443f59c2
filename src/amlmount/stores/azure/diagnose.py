"""Looking at a store step by step, from its definition to one entry of its listing, until something is wrong.

Each step stands on the one before; the first red one says what to do. Nothing is written, no secret is shown.
"""

import difflib
import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from amlmount.config.units import counted
from amlmount.errors import AccessDeniedError, AmlmountError, ContainerNotFoundError, NetworkError
from amlmount.stores.azure import open_azure
from amlmount.stores.azure.auth import Authorizer, Bearer, Sas
from amlmount.stores.azure.failures import MAX_CLOCK_ERROR_S, Attempted, clock_error_s, clock_hint, explain_network
from amlmount.stores.azure.location import Location
from amlmount.stores.azure.store import AzureStore
from amlmount.stores.azure.timing import Deadline, Timing
from amlmount.stores.azure.transport import Pool, Request, find_proxy

TIMING = Timing(connect_s=5, silence_s=10, request_s=20, call_s=30, attempts=2)


@dataclass(frozen=True, slots=True)
class Step:
    """What one step found: `detail` for people; `error` is None when it is green."""

    name: str
    detail: str
    error: AmlmountError | None = None


def diagnose(definition: Mapping[str, object], timing: Timing = TIMING) -> Iterator[Step]:
    """Yield the steps as they are done, the last one red if anything is wrong. Raises nothing of its own."""
    try:
        store = open_azure(definition, timing=timing)
    except AmlmountError as error:
        yield Step("name", error.message, error)
        return
    try:
        yield from _walk(_Probe(store, timing))
    finally:
        store.close()


def _walk(probe: "_Probe") -> Iterator[Step]:
    steps: list[tuple[str, Callable[[], str]]] = [
        ("name", probe.name),
        ("secret", probe.secret),
        ("dns", probe.dns),
        ("tcp", probe.tcp),
        ("tls", probe.tls),
        ("clock", probe.clock),
        ("token", probe.token),
        ("list", probe.list_one),
    ]
    for name, run in steps:
        try:
            yield Step(name, run())
        except AmlmountError as error:
            yield Step(name, error.message, error)
            return


class _Probe:
    def __init__(self, store: AzureStore, timing: Timing) -> None:
        self._store, self._timing = store, timing
        self._where: Location = store.location
        self._proxy: str | None = None
        self._authorizer: Authorizer | None = None

    def name(self) -> str:
        self._proxy = find_proxy(self._where.scheme, self._where.host)
        what = f"container {self._where.container}" if self._where.container else "all containers"
        return f"{what} of {self._where.url}"

    def secret(self) -> str:
        self._authorizer = self._store.authorizer()
        if isinstance(self._authorizer, Sas):
            return check_sas(self._authorizer.fields, time.time())
        return self._authorizer.kind

    def dns(self) -> str:
        host, port = self._first_hop()
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise self._explained(error) from None
        addresses = sorted({str(address[4][0]) for address in found})
        private = all(ipaddress.ip_address(address.partition("%")[0]).is_private for address in addresses)
        return f"{host} is {', '.join(addresses)} ({'private' if private else 'public'})"

    def tcp(self) -> str:
        host, port = self._first_hop()
        try:
            socket.create_connection((host, port), self._timing.connect_s).close()
        except TimeoutError:
            raise NetworkError(
                f"cannot connect to {host} port {port}: no answer in {self._timing.connect_s:.0f} s",
                hint="a firewall or route on the way drops it; with a private endpoint, see whether it is approved",
            ) from None
        except OSError as error:
            raise NetworkError(
                f"cannot connect to {host} port {port}: {error.strerror or error}",
                hint="see whether endpoint names the right host and port, and whether a proxy is needed (HTTPS_PROXY)",
            ) from None
        return f"connected to {host} port {port}" + (" (proxy)" if self._proxy else "")

    def tls(self) -> str:
        if not self._where.is_secure:
            return "not used (http)"
        with self._connected() as sock:
            issuer = dict(pair[0] for pair in sock.getpeercert().get("issuer", ()))  # type: ignore[union-attr, misc]
            name = issuer.get("organizationName") or issuer.get("commonName")
            return f"{sock.version()}, certificate by {name}"

    def clock(self) -> str:
        request = Request("GET", self._where.container_path, {"restype": "container", "comp": "list"})
        pool = Pool(self._where.scheme, self._where.host, self._where.port, self._timing)
        try:
            with pool.send(request, Deadline(self._timing.request_s)).response() as reply:
                error_s = clock_error_s(reply.headers)
        except (OSError, http.client.HTTPException) as error:
            raise self._explained(error) from None
        finally:
            pool.close()
        if error_s is None:
            return "the store says no time"
        if abs(error_s) > MAX_CLOCK_ERROR_S:
            raise AccessDeniedError(
                f"cannot log in with this clock: it is {abs(error_s):.0f} s off, the store allows 15 minutes at most",
                hint=clock_hint(error_s),
            )
        return f"{abs(error_s):.0f} s off"

    def token(self) -> str:
        if not isinstance(self._authorizer, Bearer):
            return "not needed"
        token = self._authorizer.tokens.get()
        left_s = token.expires_at_s - time.time()
        return f"of {self._authorizer.kind}, good for {left_s / 60:.0f} minutes"

    def list_one(self) -> str:
        if not self._where.container:
            return counted(len(self._store.list_containers()), "container")
        try:
            page = next(self._store.list(page_size=1), None)
        except ContainerNotFoundError as error:
            raise self._with_near_names(error) from None
        return f"first blob: {page.objects[0].name!r}" if page and page.objects else "the container is empty"

    def _with_near_names(self, error: ContainerNotFoundError) -> ContainerNotFoundError:
        try:
            names = self._store.list_containers()
        except AmlmountError:
            return error
        if self._where.container in names:  # being deleted, or disabled: it is not the name that is wrong
            return error
        near = difflib.get_close_matches(self._where.container, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"the account has {', '.join(names[:5]) or 'none'}"
        return ContainerNotFoundError(error.message, hint=hint, details={**error.details, "near": near})

    def _first_hop(self) -> tuple[str, int]:
        proxy = urlsplit(self._proxy) if self._proxy else None
        return (proxy.hostname or "", proxy.port or 80) if proxy else (self._where.host, self._where.port)

    def _connected(self) -> ssl.SSLSocket:
        pool = Pool("https", self._where.host, self._where.port, self._timing)
        try:
            return pool.connect_tls(Deadline(self._timing.request_s))
        except (OSError, http.client.HTTPException) as error:
            raise self._explained(error) from None

    def _explained(self, error: BaseException) -> AmlmountError:
        return explain_network(error, Attempted("reach", self._where))


def check_sas(fields: Mapping[str, str], now_s: float) -> str:
    """Say what a SAS allows and until when, from its own fields. Raises AccessDeniedError for one out of its time."""
    ends, begins = time_of(fields.get("se")), time_of(fields.get("st"))
    if ends is not None and ends < now_s:
        raise AccessDeniedError(
            f"cannot use the SAS: it expired {_ago(now_s - ends)} ago (se={fields['se']})",
            hint="put a new one in the same place; mounts take it up without a restart",
        )
    if begins is not None and begins > now_s:
        raise AccessDeniedError(
            f"cannot use the SAS: it begins only in {_ago(begins - now_s)} (st={fields['st']})",
            hint="wait, correct this machine's clock (timedatectl), or make a SAS without a start",
        )
    rights = fields.get("sp", "")
    if rights and not {"r", "l"} <= set(rights):
        missing = " and ".join(word for letter, word in (("r", "read"), ("l", "list")) if letter not in rights)
        raise AccessDeniedError(
            f"cannot mount with this SAS: it lacks the right to {missing} (sp={rights})", hint="make one with sp=rl"
        )
    if ends is None:
        return "SAS" + (f" by the policy {fields['si']!r}" if "si" in fields else "")
    return f"SAS with sp={rights}, good for {_ago(ends - now_s)}"


def time_of(text: str | None) -> float | None:
    """Read a time of a SAS (`se`, `st`); None if there is none, or it is not one."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"

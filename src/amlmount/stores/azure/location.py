"""Where a container is: the account's address, the paths of its blobs, and which names it can hold.

Nothing here talks to anybody; a name that a URL would change on its way is refused before one is built.
"""

from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from amlmount.config.store_models import CONTAINER_RULE, is_container_name
from amlmount.errors import ConfigError, UsageError

MAX_NAME_CHARACTERS = 1024
_KEPT = "/-_.~"


@dataclass(frozen=True, slots=True)
class Location:
    """One account's blob service, and a container in it (empty: the account itself).

    `base_path` is what stands before the container: empty, or `/account` where the host is not the account's own.
    """

    scheme: str
    host: str
    port: int
    base_path: str
    account: str
    container: str

    @property
    def is_secure(self) -> bool:
        """True for https."""
        return self.scheme == "https"

    @property
    def url(self) -> str:
        """Address of the account's blob service, without a slash at its end."""
        shown = "" if self.port == (443 if self.is_secure else 80) else f":{self.port}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}{shown}{self.base_path}"

    @property
    def container_path(self) -> str:
        """Path of the container on the server; of the account when there is none."""
        return f"{self.base_path}/{quote(self.container, safe='$')}"

    def blob_path(self, name: str) -> str:
        """Path of a blob on the server. Raises what `check_name` raises."""
        check_name(name)
        return f"{self.container_path}/{quote(name, safe=_KEPT)}"


def locate(url: str, account: str, container: str) -> Location:
    """Take an account's address apart. Raises ConfigError for one that cannot be an address."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise ConfigError(
            f"cannot use endpoint {url.partition('?')[0]!r}: it is no address of a blob service",
            hint="write a domain such as core.windows.net, or a URL such as http://127.0.0.1:10000/devstoreaccount1",
        )
    _check_private_link(parts.hostname)
    _check_container(container)
    default = 443 if parts.scheme == "https" else 80
    return Location(parts.scheme, parts.hostname, port or default, parts.path.rstrip("/"), account, container)


def check_name(name: str) -> None:
    """Refuse a blob name that no request can carry unchanged.

    Raises UsageError for one that clients and proxies rewrite (`.`, `..`, empty segments: it would reach another
    blob), and for one that is empty or longer than 1,024 characters.
    """
    if not name or len(name) > MAX_NAME_CHARACTERS or "\0" in name:
        raise UsageError(
            f"cannot use blob name {name[:40]!r}: it has {len(name)} characters, or a NUL among them",
            hint=f"a name has 1 to {MAX_NAME_CHARACTERS} characters",
        )
    for segment in name.split("/"):
        if segment in ("", ".", ".."):
            raise UsageError(
                f"cannot use blob name {name!r}: it has a segment {segment!r}",
                hint="such a blob can be listed, but not be reached by its name: copy it to another one",
            )


def _check_container(container: str) -> None:
    if container and not is_container_name(container):
        raise ConfigError(
            f"cannot use container name {container!r}: Azure allows no such name",
            hint=CONTAINER_RULE,
        )


def _check_private_link(host: str) -> None:
    if ".privatelink." in host:
        raise ConfigError(
            f"cannot use endpoint host {host!r}: certificates do not hold for privatelink names",
            hint="leave privatelink out: the plain name resolves to the private endpoint",
        )

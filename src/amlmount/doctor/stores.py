"""The preflight of stores: each one is walked through from its name to one entry of its listing; nothing is written.

What the service's error codes mean stands in `stores.azure.failures`; here is added what only this machine can know.
"""

import functools
import ipaddress
import socket
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from amlmount.config.models import Config
from amlmount.config.store_models import dump_store
from amlmount.doctor.findings import Check, Finding
from amlmount.errors import AmlmountError

# (name asked for, aliases, addresses), as socket.gethostbyname_ex.
Lookup = Callable[[str], tuple[str, list[str], list[str]]]
AZURES_RESOLVER = "168.63.129.16"


def store_checks(config: Config) -> list[Check]:
    """Return one check for each store that a mount uses, and for those that none does too."""
    return [
        _named(name, functools.partial(check_store, name, dump_store(config.stores[name]))) for name in config.stores
    ]


def check_store(name: str, definition: Mapping[str, object], lookup: Lookup = socket.gethostbyname_ex) -> list[Finding]:
    """Look at one store. Raises nothing of its own."""
    title = f"store {name}"
    if definition["type"] == "local":
        return [_local(title, definition)]
    from amlmount.stores.azure.diagnose import diagnose

    steps = list(diagnose(definition))
    last, green = steps[-1], {step.name: step.detail for step in steps if step.error is None}
    if last.error is None:
        found = [Finding(title, "ok", f"{green['name']}: {last.detail} ({green['secret']}; {green['tls']})")]
        return found + _resolution(title, definition, lookup)
    text = f"{last.error.message} (at step {last.name})"
    fix = last.error.hint
    if last.error.details.get("code") == "AuthorizationFailure" and "dns" in green:
        text += f"; here {green['dns']}"
    return [Finding(title, "fail", text, fix), *_resolution(title, definition, lookup)]


def _named(name: str, check: Check) -> Check:
    check.__name__ = f"store {name}"
    return check


def _local(title: str, definition: Mapping[str, object]) -> Finding:
    from amlmount.stores import open_store

    try:
        store = open_store(definition)
        try:
            next(iter(store.list(delimiter=True, page_size=1)), None)
        finally:
            store.close()
    except AmlmountError as error:
        return Finding(title, "fail", error.message, error.hint)
    return Finding(title, "ok", f"folder {definition['path']} can be listed")


def _resolution(title: str, definition: Mapping[str, object], lookup: Lookup) -> list[Finding]:
    """Say what is wrong with the name of an account that has a private endpoint.

    Its public name is then an alias of one in privatelink.: "DNS configuration for private endpoints" of Azure Storage.
    """
    host = _host(definition)
    if host is None:
        return []
    try:
        _, aliases, addresses = lookup(host)
    except OSError:
        return [_unknown_name(title, host, lookup)]
    names = [alias for alias in aliases if ".privatelink." in alias]
    public = [address for address in addresses if not ipaddress.ip_address(address).is_private]
    if not names or not public:
        return []
    text = f"the account has a private endpoint, but here its name leads to a public address ({', '.join(public)})"
    fix = (
        f"link the private DNS zone {names[0].partition('.')[2]} to this network, "
        f"and let its own name server forward to {AZURES_RESOLVER}"
    )
    return [Finding(title, "warn", text, fix)]


def _unknown_name(title: str, host: str, lookup: Lookup) -> Finding:
    account, _, rest = host.partition(".")
    private = f"{account}.privatelink.{rest}"
    try:
        lookup(private)
    except OSError:
        fix = f"see account_name; if it is right, the private DNS zone privatelink.{rest} lacks the record {account}"
        return Finding(title, "info", f"neither {host} nor {private} is known here", fix)
    fix = f"this network's name server must forward core.windows.net to {AZURES_RESOLVER}"
    return Finding(title, "info", f"{private} is known here, {host} is not", fix)


def _host(definition: Mapping[str, object]) -> str | None:
    """Return the host of a store of Azure's own clouds."""
    from amlmount.stores.azure import open_azure

    try:
        store = open_azure(definition)
    except AmlmountError:
        return None
    try:
        host = urlsplit(store.location.url).hostname or ""
    finally:
        store.close()
    return host if ".core." in host else None

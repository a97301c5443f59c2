"""Secrets that change while blobfuse2 runs: a new SAS by an atomic rewrite of its configuration, proven by requests.

blobfuse2 takes up nothing but a SAS; for any other secret whoever owns the mount is told that it must be made anew.
"""

import asyncio
import hashlib
import logging
import secrets as random
from collections.abc import Callable
from dataclasses import dataclass

from amlmount.config.credentials import SecretRef
from amlmount.config.spec import SourceSpec
from amlmount.engines.blobfuse2.configuring import Prepared, reveal, write_config
from amlmount.engines.blobfuse2.preflight import preflight
from amlmount.engines.offload import in_thread
from amlmount.errors import AmlmountError
from amlmount.probes import probe_name

log = logging.getLogger(__name__)
EVERY_S = 2.0
EVERY_VAULT_S = 300.0
PROBE_S = 30.0
PROBE_TRIES = 5
TRY_AGAIN_S = 60.0
NAME_NOBODY_HAS = ".amlmount-probe-"


@dataclass(frozen=True, slots=True)
class Watched:
    """What is watched: `render` writes the configuration anew with the secrets of now, and says which it used."""

    mount: str
    target: str
    source: SourceSpec
    prepared: Prepared
    render: Callable[[list[SecretRef]], str]


async def follow_secrets(watched: Watched, on_stale: Callable[[str], None]) -> None:
    """Look at the secrets again and again, for as long as the mount is there; cancel it to end it.

    `on_stale` is called when only a new mount can use what is there now, and again every minute until it is.
    """
    references = watched.prepared.references or await _references(watched)
    if not references:
        return
    pause_s = EVERY_VAULT_S if any(reference.keyvault for reference in references) else EVERY_S
    used = await in_thread(lambda: _fingerprint(references))
    complained = ""
    while True:
        await asyncio.sleep(pause_s)
        try:
            now = await in_thread(lambda: _fingerprint(references))
            if now == used:
                continue
            await in_thread(lambda: preflight(watched.source))
            if watched.prepared.mode == "sas":
                await _hand_over(watched)
                used = now
            else:
                on_stale("its credentials have changed, which blobfuse2 does not take up")
                await asyncio.sleep(TRY_AGAIN_S)
        except AmlmountError as error:
            if error.message != complained:
                log.error("%s: going on with the old credentials: %s", watched.mount, error.message)
            complained = error.message


async def _references(watched: Watched) -> tuple[SecretRef, ...]:
    """Find out which secrets the configuration of an adopted mount has; empty if they cannot be had."""
    used: list[SecretRef] = []
    try:
        await in_thread(lambda: watched.render(used))
    except AmlmountError as error:
        log.warning("%s: its secrets are not followed: %s", watched.mount, error.message)
        return ()
    return tuple(used)


async def _hand_over(watched: Watched) -> None:
    """Give blobfuse2 the new SAS, which `preflight` has tried, and try it through the mount as well."""
    text = await in_thread(lambda: watched.render([]))
    await in_thread(lambda: write_config(watched.prepared.config_path, text))
    for attempt in range(PROBE_TRIES):
        await asyncio.sleep(1.0)  # it sees the change within a second (seen with 2.5.6)
        name = f"{NAME_NOBODY_HAS}{random.token_hex(8)}"
        answer = await in_thread(lambda name=name: probe_name(watched.target, name, PROBE_S))  # type: ignore[misc]
        if answer.ok:
            log.info("%s: a new SAS is in use; a request with it was answered in %.0f ms", watched.mount, answer.ms)
            return
        log.warning("%s: after the change of SAS, try %d: %s", watched.mount, attempt + 1, answer.text)
    raise AmlmountError(f"cannot prove that blobfuse2 uses the new SAS of '{watched.mount}': {answer.text}")


def _fingerprint(references: tuple[SecretRef, ...]) -> bytes:
    """Return a hash of the secrets as they are now, so that none of them is kept."""
    digest = hashlib.blake2b(digest_size=16)
    for reference in references:
        digest.update(reveal(reference).encode() + b"\0")
    return digest.digest()

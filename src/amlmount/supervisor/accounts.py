"""Mounts of whole accounts: their containers are listed, each becomes a mount of its own, and changes are followed.

`everything` with containers `logs` and `data` is the mounts `everything/logs` and `everything/data`: one that fails
leaves the others alone.
"""

import asyncio
import fnmatch
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amlmount.cache.places import directory_name
from amlmount.cache.state import container_state
from amlmount.config.resolve import container_spec
from amlmount.config.spec import MountSpec
from amlmount.errors import AmlmountError
from amlmount.events import kinds
from amlmount.states import SERVING, Change, Failure, MountState, MountStatus, Outcome, Plan
from amlmount.supervisor.supervise import Progress, Supervisor
from amlmount.supervisor.surroundings import Surroundings, failure_of

log = logging.getLogger(__name__)
LIST_TIMEOUT_S = 60.0
LIST_AGAIN_S = 30.0


def list_containers(spec: MountSpec) -> list[str]:
    """Return the names of an account's containers. Blocks. Raises AccessDeniedError, NetworkError."""
    from amlmount.stores.azure import open_azure

    store = open_azure(spec.sources[0].store)
    try:
        return store.list_containers()
    finally:
        store.close()


@dataclass(slots=True)
class _Account:
    """One mount of a whole account. `chosen`: the containers that are mounts of it now."""

    spec: MountSpec
    chosen: tuple[str, ...] = ()
    wanted: bool = False
    failure: Failure | None = None
    timer: asyncio.TimerHandle | None = None

    @property
    def members(self) -> list[str]:
        """Names of its mounts."""
        return [f"{self.spec.name}/{container}" for container in self.chosen]

    def specs(self) -> list[MountSpec]:
        """Its mounts, each with directories of its own for the cache and for what is not sent yet."""
        return [self._placed(container_spec(self.spec, container)) for container in self.chosen]

    def choose(self, containers: Iterable[str]) -> None:
        """Take over what a listing brought: `deny` wins, and system containers are never mounted."""
        filters = self.spec.containers
        assert filters is not None
        self.chosen = tuple(
            name
            for name in sorted(containers)
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in filters.allow)
            and not any(fnmatch.fnmatchcase(name, pattern) for pattern in filters.deny)
            and not name.startswith("$")
        )

    def _placed(self, spec: MountSpec) -> MountSpec:
        cache_dir = self.spec.cache_dir
        if cache_dir is not None:
            cache_dir = os.path.join(os.path.dirname(cache_dir), directory_name(spec))
        return spec.model_copy(update={"cache_dir": cache_dir, "state_dir": container_state(self.spec, spec)})


class AccountSupervisor(Supervisor):
    """A supervisor that knows accounts: their names stand for their mounts wherever a mount can be named."""

    def __init__(
        self,
        around: Surroundings,
        specs: Iterable[MountSpec] = (),
        *,
        list_containers: Callable[[MountSpec], list[str]] = list_containers,
    ) -> None:
        self._accounts: dict[str, _Account] = {}
        self._plain: list[MountSpec] = []
        self._list = list_containers
        self._busy: set[asyncio.Task[None]] = set()
        super().__init__(around, specs)

    def update(self, specs: Iterable[MountSpec]) -> None:
        """See Supervisor. What is known of an account's containers stays known."""
        self._plain = list(specs)
        before, self._accounts = self._accounts, {}
        for spec in self._plain:
            if spec.containers is not None:
                account = self._accounts[spec.name] = before.pop(spec.name) if spec.name in before else _Account(spec)
                account.spec = spec
        for gone in before.values():
            _cancel(gone)
        self._apply()

    def recover(self, kept: Mapping[str, int] | None = None) -> None:
        """See Supervisor. Which mounts an account had, the records tell."""
        for record in self._around.records.load():
            name, _, container = record.name.partition("/")
            if container and (account := self._accounts.get(name)) is not None:
                account.choose({*account.chosen, container})
                account.wanted = True
                self._follow(account, 0.0)
        self._apply()
        super().recover(kept)

    @property
    def needed(self) -> bool:
        """See Supervisor; an account that could not be listed is tried again."""
        return super().needed or any(account.wanted and account.failure for account in self._accounts.values())

    def status(self, names: Sequence[str] | None = None) -> list[MountStatus]:
        """See Supervisor; an account that is meant has a line of its own, ahead of those of its mounts."""
        found = {status.name: status for status in super().status(self._members(names))}
        lines: list[MountStatus] = []
        for account in self._meant(names):
            members = [found.pop(name) for name in account.members if name in found]
            is_meant = names is None or account.spec.name in names
            lines += [_summary(account, members), *members] if is_meant else members
        return [*found.values(), *lines]

    async def plan(self, names: Sequence[str] | None) -> list[Plan]:
        """See Supervisor; accounts are listed for it."""
        failures = await self._look(names)
        plans = await super().plan(self._members(names))
        return plans + [_failed_plan(self._accounts[name].spec, failure) for name, failure in failures.items()]

    async def up(
        self, names: Sequence[str] | None, *, wait: bool, timeout_s: float, progress: Progress = lambda _: None
    ) -> Outcome:
        """See Supervisor; accounts are listed first, and followed from then on."""
        failures = await self._look(names)
        for account in self._meant(names):
            account.wanted = True
            self._follow(account, account.spec.containers.watch_s if account.spec.containers else None)
        outcome = await super().up(self._members(names), wait=wait, timeout_s=timeout_s, progress=progress)
        return self._with_failures(outcome, failures)

    async def down(
        self, names: Sequence[str] | None, *, lazy: bool, timeout_s: float, progress: Progress = lambda _: None
    ) -> Outcome:
        """See Supervisor; accounts are not followed any more."""
        for account in self._meant(names):
            if names is None or account.spec.name in names:
                account.wanted, account.failure = False, None
                _cancel(account)
        return await super().down(self._members(names), lazy=lazy, timeout_s=timeout_s, progress=progress)

    async def restart(
        self, names: Sequence[str] | None, *, timeout_s: float, progress: Progress = lambda _: None
    ) -> Outcome:
        """See Supervisor."""
        return await super().restart(self._members(names), timeout_s=timeout_s, progress=progress)

    async def restarts(self, names: Sequence[str] | None, *, only_newer: bool) -> list[Change]:
        """See Supervisor."""
        return await super().restarts(self._members(names), only_newer=only_newer)

    async def close(self, *, timeout_s: float) -> None:
        """See Supervisor."""
        for task in list(self._busy):
            task.cancel()
        await super().close(timeout_s=timeout_s)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _apply(self) -> None:
        specs: list[MountSpec] = []
        for spec in self._plain:
            account = self._accounts.get(spec.name)
            specs += [spec] if account is None else account.specs()
        super().update(specs)

    def _meant(self, names: Sequence[str] | None) -> list[_Account]:
        """Return the accounts that are named, or one of whose mounts is."""
        wanted = None if names is None else {name.partition("/")[0] for name in names}
        return [account for name, account in self._accounts.items() if wanted is None or name in wanted]

    def _members(self, names: Sequence[str] | None) -> list[str] | None:
        if names is None:
            return None
        found = [self._accounts[name].members if name in self._accounts else [name] for name in names]
        return [name for members in found for name in members]

    async def _look(self, names: Sequence[str] | None) -> dict[str, Failure]:
        """List the accounts that are meant, and return those that could not be listed."""
        accounts = self._meant(names)
        await asyncio.gather(*(self._list_account(account) for account in accounts))
        self._apply()
        return {account.spec.name: account.failure for account in accounts if account.failure is not None}

    async def _list_account(self, account: _Account) -> None:
        try:
            async with asyncio.timeout(LIST_TIMEOUT_S):
                account.choose(await asyncio.to_thread(self._list, account.spec))
            account.failure = None
        except TimeoutError:
            account.failure = Failure("timeout", f"cannot list the containers of '{account.spec.name}' in time")
        except AmlmountError as error:
            account.failure = failure_of(error, "mount", account.spec.name)

    def _follow(self, account: _Account, every_s: float | None) -> None:
        _cancel(account)
        delay_s = LIST_AGAIN_S if account.failure is not None else every_s
        if delay_s is not None:
            account.timer = asyncio.get_running_loop().call_later(delay_s, self._begin_round, account)

    def _begin_round(self, account: _Account) -> None:
        task = asyncio.create_task(self._round(account), name=f"containers of {account.spec.name}")
        self._busy.add(task)
        task.add_done_callback(self._busy.discard)

    async def _round(self, account: _Account) -> None:
        """List again: what is new is mounted, what has vanished is taken down, politely."""
        before = set(account.members)
        await self._list_account(account)
        if account.failure is not None:
            text = f"{account.failure.message}; what is mounted stays"
            self.events.tell(kinds.CONTAINERS_UNKNOWN, text, mount=account.spec.name)
        gone, new = before - set(account.members), set(account.members) - before
        self._apply()
        if account.wanted and (new or gone):
            parts = [f"{what}: {', '.join(sorted(names))}" for what, names in (("new", new), ("gone", gone)) if names]
            self.events.tell(kinds.CONTAINERS_CHANGED, "; ".join(parts), mount=account.spec.name)
        if account.wanted and new:
            await super().up(sorted(new), wait=False, timeout_s=0)
        if gone:
            await self._let_go(sorted(gone))
        if account.wanted:
            self._follow(account, account.spec.containers.watch_s if account.spec.containers else None)

    async def _let_go(self, names: list[str]) -> None:
        outcome: Awaitable[Outcome] = super().down(names, lazy=False, timeout_s=LIST_TIMEOUT_S)
        for name, failure in (await outcome).errors.items():
            log.warning("%s: %s", name, failure.message)

    def _with_failures(self, outcome: Outcome, failures: dict[str, Failure]) -> Outcome:
        lines = [_summary(self._accounts[name], []) for name in failures]
        return Outcome([*outcome.mounts, *lines], outcome.errors | failures)


def _cancel(account: _Account) -> None:
    if account.timer is not None:
        account.timer.cancel()
        account.timer = None


def _summary(account: _Account, members: list[MountStatus]) -> MountStatus:
    """Return the line of an account: as good as all of its mounts, degraded if only some are well."""
    spec = account.spec
    facts: dict[str, Any] = {"read_only": spec.read_only, "profile": spec.policy.profile, "wanted": account.wanted}
    well = [status for status in members if status.state in SERVING]
    bad = [status for status in members if status.state is MountState.FAILED or status.last_error is not None]
    failure, state = account.failure, MountState.UNMOUNTED
    if well:
        state = MountState.DEGRADED if failure or (len(well) < len(members) and account.wanted) else MountState.MOUNTED
    elif failure or bad:
        state = MountState.FAILED
    elif any(status.state is not MountState.UNMOUNTED for status in members):
        state = next(status.state for status in members if status.state is not MountState.UNMOUNTED)
    if failure is None and bad:
        names = ", ".join(status.name for status in bad)
        failure = Failure("partial", f"cannot serve all of '{spec.name}': {names}", "amlmount ps shows why")
    since = max((status.since for status in members), default=0.0)
    return MountStatus(spec.name, spec.target, spec.description, **facts, state=state, since=since, last_error=failure)


def _failed_plan(spec: MountSpec, failure: Failure) -> Plan:
    return Plan(spec.name, spec.target, spec.description, "fail", error=failure)

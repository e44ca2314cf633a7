"""The pool: which artifacts have parked clones, and the claim of one by a start that it fits."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing
from functools import partial

import anyio
import structlog
from anyio.to_thread import run_sync

from ovms_supervisor.clock import Stopwatch
from ovms_supervisor.instance import Instance, Life
from ovms_supervisor.instance.admission import admit
from ovms_supervisor.instance.adoption import Found
from ovms_supervisor.instance.host import Host
from ovms_supervisor.instance.resolution import resolve
from ovms_supervisor.instance.trust import check_trust
from ovms_supervisor.instance.unparking import unpark
from ovms_supervisor.pool import orders
from ovms_supervisor.pool.figures import PoolFigures
from ovms_supervisor.pool.fit import misfit
from ovms_supervisor.pool.names import Names, listed_source
from ovms_supervisor.pool.orders import Order
from ovms_supervisor.pool.pressure import StallTrigger, lacking_bytes
from ovms_supervisor.pool.refill import Refill
from ovms_supervisor.pool.stock import Stock
from ovms_supervisor.pool.traffic import Traffic
from ovms_supervisor.roster import Roster
from spec.api import StartRequest, WarmPool, WarmRequest
from spec.digest import Digest
from spec.errors import CapacityExceeded, InvalidRequest, NotFound, OvmsError
from spec.fault_points import reach
from spec.instance import InstanceState, TrustInfo, is_live
from spec.reference import Reference
from vmm.inotify import arrivals

_log = structlog.get_logger(__name__)


class Pool:
    """All parked clones of a daemon. ``begin`` starts a life, ``forget`` removes what is left of an instance."""

    def __init__(
        self,
        host: Host,
        roster: Roster,
        begin: Callable[[Life], Awaitable[None]],
        forget: Callable[[Instance], Awaitable[None]],
    ) -> None:
        self._host = host
        self._roster = roster
        self._forget = forget
        self._stocks: dict[str, Stock] = {}
        self._configured = {
            each.reference: Order(reference=each.reference, usual=each.least, least=each.least, most=each.most)
            for each in host.settings.warm
        }
        self._names = Names(host.store)
        self._resumes = anyio.CapacityLimiter(max(2, os.cpu_count() or 1))
        """Guests that go on take processors from those who resume the others, so these get done one after another."""
        self._running = anyio.CancelScope()
        self._stopped = anyio.Event()
        self.traffic = Traffic()
        self.figures = PoolFigures(self._stocks)
        self.refill = Refill(host, roster, self._stocks, self.figures, self.traffic, begin)

    # --- orders -----------------------------------------------------------------------------------------------------

    def infos(self) -> list[WarmPool]:
        """Every order and how it goes."""
        return [stock.info() for stock in self._stocks.values()]

    async def order(self, request: WarmRequest) -> WarmPool:
        """Keep clones parked from now on, also by later daemons; a count of 0 dissolves. Returns at once.

        Raises InvalidReference, ArtifactNotFound, InvalidRequest, and whatever keeps the artifact from starting.
        """
        order = _order(request)
        if order.most == 0:
            await self.dissolve(request.manifest)
            return Stock(order, None).info()
        digest = await self._names.digest(order.reference)
        await self._check_restorable(order, digest)
        stock = self._stocks.get(order.reference)
        if stock is None:
            stock = self._stocks[order.reference] = Stock(order, digest)
        else:
            if order.runtime != stock.order.runtime:
                self._give_up(stock)
            stock.change(order)
            self._retarget(stock, digest)
        await self._write()
        reach("park.order")
        self._host.events.publish("warm.ordered", manifest=order.reference, min=order.least, max=order.most)
        self.refill.wake()
        return stock.info()

    async def settled(self, reference: str) -> WarmPool:
        """Wait until an order is fulfilled, or something keeps it from being so. Raises NotFound, InvalidReference."""
        name = _name(reference)
        while (stock := self._stocks.get(name)) is not None:
            await stock.settled()
            if self._stocks.get(name) is stock:
                return stock.info()
        raise NotFound(f"no clones of {name} are kept parked")

    async def dissolve(self, reference: str) -> None:
        """Keep none any more; those that are parked end in the background. Raises NotFound, InvalidReference."""
        name = _name(reference)
        stock = self._stocks.pop(name, None)
        if stock is None:
            raise NotFound(f"no clones of {name} are kept parked", remedy="'ovm warm --list' shows of what they are.")
        self._give_up(stock)
        await self._write()
        self._host.events.publish("warm.dissolved", manifest=name)

    # --- claims -----------------------------------------------------------------------------------------------------

    async def claim(self, request: StartRequest, watch: Stopwatch) -> tuple[Instance | None, str | None]:
        """The machine of a start, which runs, if a parked clone fits; else None and, where there is one, the reason.

        Raises PolicyRejected, InvalidPolicy: it was admitted when it was parked, under another name and policy.
        """
        if not self._stocks:
            return None, None
        digest = self._names.known(request.manifest) or await self._digest(request.manifest)
        stocks = [stock for stock in self._stocks.values() if stock.digest == digest]
        if digest is None or not stocks:
            return None, None
        why = "no clone is parked"
        for stock in stocks:
            example = stock.any_parked()
            if example is None:
                why = f"all clones are taken: {stock.parking} are being restored, {stock.wanted()} wanted"
            elif reason := misfit(request.overrides, example.record):
                why = reason
            else:
                trust = await check_trust(self._host, request, digest, ram_snapshot=True)
                if instance := await self._claim(stock, request, trust, watch):
                    return instance, None
        stocks[0].missed()
        self.figures.misses.labels(stocks[0].order.reference).inc()
        self.refill.wake()
        return None, why

    async def _claim(self, stock: Stock, request: StartRequest, trust: TrustInfo, watch: Stopwatch) -> Instance | None:
        while (life := stock.take()) is not None:
            try:
                await life.perform("claim", partial(self._hand_out, life, request, trust, watch), InstanceState.PARKED)
            except CapacityExceeded:  # it could not grow: others may give way to it
                if life.instance.state is InstanceState.PARKED:
                    stock.put(life)
                raise
            except (OvmsError, OSError) as error:
                _log.warning("a parked clone could not be claimed", instance=life.instance.id, why=str(error))
                self.refill.end_soon(life)
                continue
            stock.hit()
            self.figures.hits.labels(stock.order.reference).inc()
            self.figures.claim_seconds.observe(watch.total_ms / 1000)
            self.refill.save_later(life)
            return life.instance
        return None

    async def _hand_out(self, life: Life, request: StartRequest, trust: TrustInfo, watch: Stopwatch) -> None:
        if life.instance.seat is not None:
            capacity = self._host.capacity
            capacity.clones.unpark(life.instance.seat, promised_bytes=capacity.unfilled_bytes)
        async with self._resumes:
            await unpark(life.instance, request, trust, watch)
        self._roster.add(life.instance)  # under its name

    async def _digest(self, manifest: str) -> Digest | None:
        try:
            return await self._names.digest(manifest)
        except OvmsError:
            return None  # the start itself will say what is wrong with it

    # --- what becomes of clones ---------------------------------------------------------------------------------------

    async def open(self, found: Iterable[Found]) -> None:
        """Take up the orders of an earlier daemon, with the clones that it left parked."""
        told = {order.reference: order for order in await run_sync(orders.read, self._host.layout.warm_orders)}
        for order in (self._configured | told).values():
            if order.most:
                self._stocks[order.reference] = Stock(order, None)
                await self._look_up(self._stocks[order.reference])
        for instance, life in ((each.instance, each.life) for each in found if each.instance.record.pool is not None):
            stock = self._stocks.get(instance.record.pool or "")
            if life is None:  # it ended in the last moments of the daemon before
                await self._forget(instance)
            elif instance.vm is None:
                continue  # its life ends at once, and we are told
            elif stock is not None and stock.digest == instance.record.manifest.digest:
                await self.refill.put(stock, life)
            else:
                self.refill.end_soon(life)

    async def run(self) -> None:
        """Keep the stocks filled until closed or cancelled."""
        trigger = StallTrigger(self.refill.on_stall)
        try:
            with self._running:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._follow_names)
                    await self.refill.run()
        finally:
            trigger.close()
            self._stopped.set()

    async def close(self) -> None:
        """Park and drop no more clones; what is half parked is undone. Those that are parked stay."""
        self._running.cancel()
        await self._stopped.wait()

    async def ended(self, life: Life) -> None:
        """The life of an instance is over. A parked clone leaves nothing behind: nobody has known it."""
        instance = life.instance
        if instance.record.pool is None or is_live(instance.state):
            return
        stock = self._stocks.get(instance.record.pool)
        if stock is not None:
            stock.remove(life)
            if instance.state is InstanceState.FAILED:
                reason = instance.record.exit.reason if instance.record.exit else "unknown"
                stock.failed(f"a clone has ended: {reason}")
                self.figures.died.labels(stock.order.reference).inc()
                self._host.events.publish("warm.died", manifest=stock.order.reference, cause=reason)
        await self._forget(instance)
        self.refill.wake()

    async def give_way(self, refused: CapacityExceeded) -> bool:
        """A start finds no memory: end some clones, and return when they are gone. False if that would not help."""
        return await self.refill.give_way(lacking_bytes(refused))

    # --- inside ----------------------------------------------------------------------------------------------------

    def _give_up(self, stock: Stock) -> None:
        self.refill.end_soon(*stock.take_oldest(stock.parked))

    async def _follow_names(self) -> None:
        """When the list of artifacts changes, the references of orders may mean others, or none."""
        try:
            async with aclosing(arrivals(self._host.store.root)) as seen:
                async for _ in seen:
                    if self._names.changed():
                        for stock in list(self._stocks.values()):
                            await self._look_up(stock)
                        self.refill.wake()
        except OvmsError as error:
            _log.warning("references of parked clones are looked up at the next start only", why=error.detail)

    async def _look_up(self, stock: Stock) -> None:
        """Find out what the reference means now; clones of what it meant before are given up."""
        digest: Digest | None = None
        try:
            digest = await self._names.digest(stock.order.reference)
            if digest != stock.digest:
                await self._check_restorable(stock.order, digest)
        except OvmsError as error:
            digest, stock.trouble = None, f"{error.title}: {error.detail}"
            _log.warning("clones can't be kept parked", artifact=stock.order.reference, why=error.detail)
        self._retarget(stock, digest)

    def _retarget(self, stock: Stock, digest: Digest | None) -> None:
        if digest != stock.digest:
            stock.digest, stock.trouble, stock.retry_at_s = digest, None if digest else stock.trouble, 0.0
            self._give_up(stock)

    async def _check_restorable(self, order: Order, digest: Digest) -> None:
        plan = await admit(self._host, await resolve(self._host, order.request(digest)), Stopwatch())
        if plan.boot != "restore":
            raise InvalidRequest(
                "the artifact has no RAM snapshot: there is nothing to restore clones from",
                path="$.manifest",
                remedy="Start it, take a snapshot (ovm snapshot), and keep clones of that.",
            )

    async def _write(self) -> None:
        """What was told by callers, and is not what the configuration says anyway."""
        told = [
            stock.order for stock in self._stocks.values() if self._configured.get(stock.order.reference) != stock.order
        ]
        told += [orders.none_of(reference) for reference in self._configured if reference not in self._stocks]
        await run_sync(orders.write, self._host.layout.warm_orders, told, self._host.store.temp)


def _order(request: WarmRequest) -> Order:
    least = request.count if request.min is None else request.min
    most = max(request.count, least) if request.max is None else request.max
    if not least <= request.count <= most:
        raise InvalidRequest(f"min {least}, count {request.count} and max {most} are not in this order", path="$.count")
    return Order(
        reference=_name(request.manifest), usual=request.count, least=least, most=most, runtime=request.runtime
    )


def _name(reference: str) -> str:
    source = listed_source(reference)
    if isinstance(source, Reference) and source.digest is None:
        return source.local_name
    return str(source)

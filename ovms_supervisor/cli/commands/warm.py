"""``ovm warm``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ovms_supervisor.cli import background, output
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.invocation import Invocation, pass_invocation, run_async

if TYPE_CHECKING:
    from spec.api import WarmPool, WarmRequest

_MOST = 100_000


@click.command(
    "warm",
    cls=OvmCommand,
    examples=[
        "ovm warm demo:warm --count 16",
        "ovm warm demo:warm --count 8 --min 2 --max 64",
        "ovm warm --list",
        "ovm warm demo:warm --count 0",
    ],
)
@click.argument("reference", metavar="[REF]", required=False)
@click.option("--count", type=click.IntRange(0, _MOST), metavar="N", help="How many clones to keep; 0: none any more.")
@click.option("--min", "least", type=click.IntRange(0, _MOST), metavar="N", help="How many without demand.")
@click.option("--max", "most", type=click.IntRange(0, _MOST), metavar="N", help="How many at most, under demand.")
@click.option("--runtime", type=click.Choice(["generic", "qemu", "cloud-hypervisor"]), help="Which VMM; generic: any.")
@click.option("-l", "--list", "listing", is_flag=True, help="Show of which artifacts clones are kept.")
@click.option("--no-wait", is_flag=True, help="Don't wait until they are parked.")
@pass_invocation
def warm_command(
    invocation: Invocation,
    reference: str | None,
    count: int | None,
    least: int | None,
    most: int | None,
    runtime: str | None,
    listing: bool,
    no_wait: bool,
) -> None:
    """Keep clones of an artifact with a RAM snapshot parked: restored, paused, complete.

    'ovm run' of the same artifact then claims one, which takes as long as a resume. The pool is refilled in the
    background, outlives the daemon, and gives way when memory is short. With --min and --max it follows the demand.
    """
    if listing or reference is None:
        if reference is not None or count is not None:
            raise click.UsageError("--list takes neither REF nor --count")
        _print(invocation, run_async(lambda: _pools(invocation)))
        return
    if count is None:
        raise click.UsageError("--count is missing")
    if not (count if least is None else least) <= count <= (max(count, least or 0) if most is None else most):
        raise click.UsageError("--min, --count and --max must be in this order")
    from spec.api import WarmRequest
    from spec.decoding import from_builtins

    # Click has checked all but what the manifest may be, which the daemon says best.
    fields = {"manifest": reference, "count": count, "min": least, "max": most, "runtime": runtime}
    request = from_builtins(fields, WarmRequest)
    pool = run_async(lambda: _order(invocation, request, wait=not no_wait))
    _print(invocation, [] if pool is None else [pool])
    if pool is not None and pool.trouble:
        output.message(f"ovm: {pool.manifest}: {pool.trouble}")


async def _pools(invocation: Invocation) -> list[WarmPool]:
    async with invocation.client() as client:
        return await client.pools()


async def _order(invocation: Invocation, request: WarmRequest, *, wait: bool) -> WarmPool | None:
    if not (request.count or request.max):
        async with invocation.client() as client:
            await client.dissolve(request.manifest)
        return None
    background.ensure(invocation)
    async with invocation.client() as client:
        return await client.warm(request, wait="parked" if wait else None)


def _print(invocation: Invocation, pools: list[WarmPool]) -> None:
    if invocation.json:
        output.as_json(pools)
        return
    output.table(("ARTIFACT", "PARKED", "WANTED", "MIN", "MAX", "HITS", "MISSES"), [_row(pool) for pool in pools])


def _row(pool: WarmPool) -> tuple[str, ...]:
    counts = (pool.parked, pool.wanted, pool.min, pool.max, pool.hits, pool.misses)
    return (pool.manifest, *(str(count) for count in counts))

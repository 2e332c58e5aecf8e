"""`network`: further networks behind this network's stake, and Credit between them."""

import re

import click
from rich.table import Table

from deaios.cli.terminal import common, console, emit_json, run_async, say
from deaios.ledger.settings import CONFIRMATIONS_MAX
from deaios.node.folder import StateFolder
from deaios.primitives.units import CREDIT, CREDIT_DECIMALS, format_credit

_AMOUNT = re.compile(rf"[0-9]{{1,12}}(?:\.[0-9]{{1,{CREDIT_DECIMALS}}})?", re.ASCII)
ROOT = "root"


@click.group()
def network() -> None:
    """Add, list and remove networks behind the same stake; send Credit.

    A further network is an EVM chain of its own. Whoever has a stake on the root can validate it; more than two thirds
    of that power speak for it, and a lie there is slashed on the root.
    """


@network.command()
@click.argument("name")
@click.option("--chain", "chain_url", metavar="URL", help="A chain that runs already; one is started here otherwise.")
@click.option("--service", "services", multiple=True, metavar="NAME", help="Bind a service to it; may be repeated.")
@click.option(
    "--confirmations",
    type=click.IntRange(1, CONFIRMATIONS_MAX),
    default=None,
    help="Blocks before validators believe something; 1 for a chain started here, 12 otherwise.",
)
@common
@run_async
async def add(
    name: str,
    chain_url: str | None,
    services: tuple[str, ...],
    confirmations: int | None,
    folder: StateFolder,
    as_json: bool,
) -> None:
    """Add a network called NAME to the one that runs in this folder; for its founder.

    Starts a chain (or takes the one at URL), enters it on the root, joins it with three validators of this machine,
    deploys its contracts, writes it into the signed descriptor, and starts validators and a relayer. A command that
    was interrupted goes on when it is repeated. On a chain at URL, the key `chain-NAME` pays: the command says which
    address wants native coin.
    """
    from deaios.node.keystore import open_keystore  # noqa: PLC0415 - keeps `--help` quick
    from deaios.node.networks import Founder  # noqa: PLC0415 - keeps `--help` quick
    from deaios.runtime.clock import SystemClock  # noqa: PLC0415 - keeps `--help` quick

    report = (lambda _text: None) if as_json else (lambda text: say(text, style="dim"))
    founder = Founder(folder, open_keystore(folder), SystemClock(), report)
    depth = confirmations or (1 if chain_url is None else 12)
    added = await founder.add(name, chain_url=chain_url, services=services, confirmations=depth)
    if as_json:
        emit_json(
            {"name": added.name, "id": "0x" + added.id.hex(), "chain_id": added.chain_id, "url": added.rpc_urls[0]}
        )
        return
    say(f"{added.name} is a network behind this stake", style="green")
    say(f"  Ethereum RPC {added.rpc_urls[0]}   chain id {added.chain_id}")
    say(f"  send Credit  deaios network send 1 --to-network {added.name}")
    if added.services:
        say(f"  bound        {', '.join(added.services)} (recorded; roles of this version stay on the root)")


@network.command(name="list")
@common
@run_async
async def list_(folder: StateFolder, as_json: bool) -> None:
    """List the further networks with their validators, epochs and Credit."""
    from deaios.node.networks import list_networks  # noqa: PLC0415 - keeps `--help` quick

    found = await list_networks(folder.load_descriptor())
    if as_json:
        emit_json(found)
        return
    if not found:
        say("no further networks; add one with `deaios network add NAME`")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("network", "state", "validators", "epoch", "credit there", "services", "url"):
        table.add_column(title, overflow="fold")
    for item in found:
        if item.height is None:
            state = "[red]unreachable[/]"
        elif item.retired:
            state = "[dim]given up[/]"
        else:
            state = "[green]running[/]" if item.trusted else "[red]trust is over[/]"
        epoch = (
            f"{item.root_epoch}" if item.mirror_epoch == item.root_epoch else f"{item.mirror_epoch}/{item.root_epoch}"
        )
        services = ", ".join(item.services) or "-"
        credit = format_credit(item.outstanding)
        table.add_row(item.name, state, str(item.validators), epoch, credit, services, item.url)
    console.print(table)


@network.command()
@click.argument("name")
@click.option("--abandon", is_flag=True, help="Even though Credit is still there; it stays there.")
@common
@run_async
async def remove(name: str, abandon: bool, folder: StateFolder, as_json: bool) -> None:
    """Give up the network called NAME: no more epochs on the root, and its roles here end.

    The chain's data and keys stay in the folder. The bond comes back with `deaios network reclaim` once its validators
    need not answer any more.
    """
    from deaios.node.keystore import open_keystore  # noqa: PLC0415 - keeps `--help` quick
    from deaios.node.networks import Founder  # noqa: PLC0415 - keeps `--help` quick
    from deaios.runtime.clock import SystemClock  # noqa: PLC0415 - keeps `--help` quick

    founder = Founder(folder, open_keystore(folder), SystemClock(), (lambda _text: None) if as_json else say)
    await founder.remove(name, abandon=abandon)
    if as_json:
        emit_json({"removed": name})
    else:
        say(f"{name} is given up")


@network.command()
@common
@run_async
async def reclaim(folder: StateFolder, as_json: bool) -> None:
    """Take back the bonds of networks that were given up long enough ago."""
    from deaios.node.keystore import open_keystore  # noqa: PLC0415 - keeps `--help` quick
    from deaios.node.networks import Founder  # noqa: PLC0415 - keeps `--help` quick
    from deaios.runtime.clock import SystemClock  # noqa: PLC0415 - keeps `--help` quick

    founder = Founder(folder, open_keystore(folder), SystemClock(), (lambda _text: None) if as_json else say)
    taken = await founder.reclaim()
    if as_json:
        emit_json({"reclaimed": taken})
    else:
        say(f"{format_credit(taken)} credit came back" if taken else "no bond can be taken back now")


def _read_amount(_context: click.Context, _parameter: click.Parameter, value: str) -> int:
    if not _AMOUNT.fullmatch(value) or not value.strip("0."):
        raise click.BadParameter(
            f"an amount of Credit such as 1 or 0.25, at most {CREDIT_DECIMALS} digits after the point"
        )
    whole, _, part = str(value).partition(".")
    units: int = int(whole) * CREDIT + int(part.ljust(CREDIT_DECIMALS, "0"))
    return units


@network.command()
@click.argument("amount", callback=_read_amount)
@click.option("--from-network", "source", default=ROOT, show_default=True, metavar="NAME", help="Where it is.")
@click.option("--to-network", "destination", default=ROOT, show_default=True, metavar="NAME", help="Where it goes.")
@click.option("--receiver", metavar="ADDRESS", help="Who gets it there; this folder's user otherwise.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Until it has arrived.")
@common
@run_async
async def send(
    amount: int,
    source: str,
    destination: str,
    receiver: str | None,
    wait: bool,
    folder: StateFolder,
    as_json: bool,
) -> None:
    """Send AMOUNT of this folder's Credit to another network: it is burned here and minted there."""
    from deaios.node.bridging import send_credit  # noqa: PLC0415 - keeps `--help` quick

    sent = await send_credit(
        folder, amount, source=source, destination=destination, receiver=receiver, wait=wait,
        report=(lambda _text: None) if as_json else (lambda text: say(text, style="dim")),
    )  # fmt: skip
    if as_json:
        emit_json(sent)
    else:
        verb = "arrived on" if sent.arrived else "is on its way to"
        say(f"{format_credit(amount)} credit {verb} {destination} for {sent.receiver}", style="green")

"""`wallet`: who you are and what you have on this network, in hand and in channels."""

from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

import click

from deaios.cli.terminal import common, emit_json, run_async, say
from deaios.node.folder import StateFolder
from deaios.primitives.units import format_credit

if TYPE_CHECKING:
    from deaios.node.money import ChannelEntry

_NAME = click.option("--name", default="user", show_default=True, help="Which key of this folder; roles have one each.")


@click.group(invoke_without_command=True)
@common
@_NAME
@click.option("--send", "recipient", metavar="0xADDRESS", help="Send credit to this address.")
@click.option("--amount", type=Decimal, help="How much credit to send.")
@click.pass_context
def wallet(
    context: click.Context, folder: StateFolder, as_json: bool, name: str, recipient: str | None, amount: Decimal | None
) -> None:
    """Show addresses, balances and stakes of this folder's keys, or send credit; `wallet withdraw` gets all back."""
    if context.invoked_subcommand is None:
        _show(folder=folder, as_json=as_json, name=name, recipient=recipient, amount=amount)


@run_async
async def _show(
    *, folder: StateFolder, as_json: bool, name: str, recipient: str | None, amount: Decimal | None
) -> None:
    from deaios.node.wallet import read_wallet, send_credit  # noqa: PLC0415 - keeps `--help` quick

    if (recipient is None) != (amount is None):
        raise click.UsageError("--send and --amount belong together")
    if recipient is not None and amount is not None:
        sent = await send_credit(folder, name, recipient, amount)
        emit_json(sent) if as_json else say(f"sent {amount} credit to {recipient}, transaction {sent.transaction}")
        return
    entries = await read_wallet(folder)
    if as_json:
        emit_json(entries)
        return
    for entry in entries:
        say(
            f"{entry.name:16} {entry.address}  {format_credit(entry.credit):>12} credit  {entry.gas_ether:>10} gas",
            style=None,
        )
        if entry.stake:
            say(f"{'':16} {'stake':42}  {format_credit(entry.stake):>12} credit")


@wallet.command()
@common
@_NAME
@run_async
async def balance(folder: StateFolder, as_json: bool, name: str) -> None:
    """Show what a key has in payment channels, with whom, and what of it is on its way back."""
    from deaios.node.money import read_channels  # noqa: PLC0415 - keeps `--help` quick

    _list(await read_channels(folder, name), as_json=as_json)


@wallet.command()
@common
@_NAME
@click.argument("gateway", metavar="0xGATEWAY")
@click.argument("amount", type=Decimal)
@run_async
async def deposit(folder: StateFolder, as_json: bool, name: str, gateway: str, amount: Decimal) -> None:
    """Put credit into the x402 channel with a gateway: one deposit for every provider that it buys from.

    A gateway's address is `payTo` in its answers to requests that carry no key.
    """
    from deaios.node.money import deposit_with_gateway  # noqa: PLC0415 - keeps `--help` quick

    sent = await deposit_with_gateway(folder, name, gateway, amount)
    emit_json(sent) if as_json else say(f"deposited {amount} credit, transaction {sent.transaction}")


@wallet.command()
@common
@_NAME
@click.option("--wait", "is_patient", is_flag=True, help="Stay until the delays are over and the money is back.")
@run_async
async def withdraw(folder: StateFolder, as_json: bool, name: str, is_patient: bool) -> None:
    """Take back everything that a key has in payment channels; nobody has to agree.

    The first call starts each channel's delay, in which what was earned may still be claimed; a second one, or
    --wait, takes the rest.
    """
    from deaios.node.money import withdraw_all  # noqa: PLC0415 - keeps `--help` quick

    _list(await withdraw_all(folder, name, is_patient=is_patient), as_json=as_json)


def _list(entries: "Sequence[ChannelEntry]", *, as_json: bool) -> None:
    if as_json:
        emit_json(entries)
        return
    if not entries:
        say("nothing is in channels")
    for entry in entries:
        until = f", ready at {entry.ready_at} (Unix time)" if entry.ready_at and entry.state != "returned" else ""
        say(f"{entry.kind:9} {entry.receiver}  {format_credit(entry.unclaimed):>12} credit  {entry.state}{until}")

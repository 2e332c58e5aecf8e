"""`wallet`: who you are and what you have on this network."""

from decimal import Decimal

import click

from deaios.cli.terminal import common, emit_json, run_async, say
from deaios.node.folder import StateFolder
from deaios.primitives.units import format_credit


@click.command()
@common
@click.option("--name", default="user", show_default=True, help="Which key of this folder; roles have one each.")
@click.option("--send", "recipient", metavar="0xADDRESS", help="Send credit to this address.")
@click.option("--amount", type=Decimal, help="How much credit to send.")
@run_async
async def wallet(folder: StateFolder, as_json: bool, name: str, recipient: str | None, amount: Decimal | None) -> None:
    """Show addresses, balances and stakes of this folder's keys, or send credit."""
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
        if entry.debt:
            say(f"{'':16} {'owed to a sponsor, from earnings':42}  {format_credit(entry.debt):>12} credit")

"""`up`, `down`, `join`, `status`: a network and the machines in it."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from deaios.cli.abroad import chain_options
from deaios.cli.terminal import common, console, emit_json, run_async, say
from deaios.node.config import load_config
from deaios.node.folder import StateFolder
from deaios.primitives.units import format_credit

if TYPE_CHECKING:
    from deaios.node.foreign import Wanted


@click.command()
@common
@click.option(
    "--da-nodes",
    type=click.IntRange(1, 64),
    help="Members of data availability; as before, or what deaios.toml says, otherwise.",
)
@click.option("--with-cheater", is_flag=True, help="Also run a provider that serves an 8-bit model as the real one.")
@chain_options
@run_async
async def up(
    folder: StateFolder, as_json: bool, da_nodes: int | None, with_cheater: bool, abroad: "Wanted | None"
) -> None:
    """Run the network of this folder until Ctrl-C; found one if there is none.

    Starts a chain, three storage nodes, three members of data availability, two providers, four auditors and a
    gateway as separate processes, restarts those that fail, and takes up where the last run stopped. With --chain the
    network lives on an existing EVM chain instead, and --deployer pays for it (docs/foreign.md).
    """
    from deaios.node.local import LocalNetwork, choose_da_nodes  # noqa: PLC0415 - keeps `--help` quick

    config = choose_da_nodes(folder, load_config(folder.root), da_nodes)
    network = LocalNetwork(folder, config, (lambda _text: None) if as_json else say, abroad)
    async with network.running(with_cheater=with_cheater):
        if as_json:
            emit_json(await network.status())
        else:
            _show_ready(folder, network.gateway_url, network.chain_url)
            if config.chain.time_travel:
                say(
                    "  WARNING      time travel is on: anybody who reaches the chain may move its time",
                    style="bold red",
                )
        await network.wait_until_stopped()
        if not as_json:
            say("stopping")


def _show_ready(folder: StateFolder, gateway_url: str, chain_url: str) -> None:
    option = (
        "" if folder.root == StateFolder(Path(folder.root)).root and _is_default(folder) else f" --dir {folder.root}"
    )
    say()
    say("the network is up", style="bold green")
    say(f"  OpenAI API   {gateway_url}/v1   (key: deaios connect openai{option})")
    say(f"  Ethereum RPC {chain_url}")
    say(f'  try          deaios ask "Why is the sky dark at night?" --save a.json{option}')
    say(f"               deaios verify a.json{option}")
    say("  stop         Ctrl-C")


def _is_default(folder: StateFolder) -> bool:
    from deaios.node.folder import default_folder  # noqa: PLC0415 - reads the environment when asked

    return folder.root == default_folder().absolute()


@click.command()
@common
@run_async
async def down(folder: StateFolder, as_json: bool) -> None:
    """Stop the network that runs in this folder."""
    from deaios.node.local import stop_network  # noqa: PLC0415 - keeps `--help` quick

    stopped = await stop_network(folder)
    if as_json:
        emit_json({"stopped": stopped})
    else:
        say("stopped" if stopped else f"nothing runs in {folder.root}")


@click.command()
@click.argument("descriptor")
@common
@run_async
async def join(descriptor: str, folder: StateFolder, as_json: bool) -> None:
    """Join a network by its DESCRIPTOR: a file or a URL.

    Checks the operator's signature and that the chain is the one described, makes a key, and asks the faucet for gas
    and credit. Afterwards `provide`, `store`, `audit`, `ask`, `put`, `get` and `verify` work in this folder.
    """
    from deaios.node.joining import join_network  # noqa: PLC0415 - keeps `--help` quick

    joined = await join_network(folder, descriptor)
    if as_json:
        emit_json(joined)
    else:
        say(f"joined network {joined.network}", style="green")
        say(f"  your address {joined.address}")
        say(f"  balance      {format_credit(joined.credit)} credit")


@click.command()
@common
@run_async
async def status(folder: StateFolder, as_json: bool) -> int:
    """Show what runs in this folder: roles, URLs, chain height."""
    from deaios.node.status import read_status  # noqa: PLC0415 - keeps `--help` quick

    found = await read_status(folder)
    if as_json:
        emit_json(found)
        return 0
    if not found.roles:
        say(f"nothing runs in {folder.root}; start with `deaios up` or `deaios join DESCRIPTOR`")
        return 0
    table = Table(box=None, pad_edge=False)
    for title in ("role", "state", "pid", "url", ""):
        table.add_column(title)
    for role in found.roles:
        style = {"running": "green", "failed": "red", "stopped": "dim"}.get(role.state, "yellow")
        table.add_row(role.name, f"[{style}]{role.state}[/]", str(role.pid or ""), role.url, role.reason)
    console.print(table)
    if found.chain.url:
        height = "unreachable" if found.chain.height is None else f"height {found.chain.height}"
        say(f"chain   {found.chain.url}  {height}")
    if found.gateway.url:
        say(f"gateway {found.gateway.url}/v1")
    return 0

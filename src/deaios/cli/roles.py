"""`provide`, `store`, `attest`, `audit`, `validate`, `relay`: earn in a network that this folder has joined."""

import click

from deaios.cli.terminal import common, emit_json, run_async, say
from deaios.node.folder import RoleSpec, StateFolder


async def _serve(folder: StateFolder, spec: RoleSpec, *, as_json: bool) -> None:
    from deaios.node.local import run_single_role  # noqa: PLC0415 - keeps `--help` quick

    report = (lambda _text: None) if as_json else say
    async with run_single_role(folder, spec, report) as role:
        if as_json:
            emit_json({"name": spec.name, "url": role.url})
        else:
            say(f"{spec.name} serves at {role.url}; stop with Ctrl-C", style="green")
        await role.wait_until_stopped()


@click.command()
@common
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="TCP port; picked once and kept otherwise.")
@click.option("--relay", metavar="URL", default="", help="Be reached through this relay; `direct` for none.")
@run_async
async def provide(folder: StateFolder, as_json: bool, port: int, relay: str) -> None:
    """Run models for others and be paid per answer.

    Fetches the model from the network's storage, stakes, registers, and serves until Ctrl-C. Earnings are claimed as
    you go and show up in `deaios wallet`. Where nobody can dial this machine, a gateway of the network passes requests
    on. Without money, a sponsor lends the first stake, where the network has one; the first earnings repay it.
    """
    await _serve(folder, RoleSpec("provider-1", "provider", port, relay=relay), as_json=as_json)


@click.command()
@common
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="TCP port; picked once and kept otherwise.")
@run_async
async def store(folder: StateFolder, as_json: bool, port: int) -> None:
    """Keep coded rows of other people's files."""
    await _serve(folder, RoleSpec("storage-1", "storage", port), as_json=as_json)


@click.command()
@common
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="TCP port; picked once and kept otherwise.")
@run_async
async def attest(folder: StateFolder, as_json: bool, port: int) -> None:
    """Keep rows of published blobs for their terms, attest to them, and be paid for it.

    Stakes, registers, and takes rows from the next epoch on, when seats are apportioned anew.
    """
    await _serve(folder, RoleSpec("da-1", "da", port), as_json=as_json)


@click.command()
@common
@run_async
async def audit(folder: StateFolder, as_json: bool) -> None:
    """Buy as users do, re-execute, dispute what is wrong, and sit on juries."""
    await _serve(folder, RoleSpec("auditor-1", "auditor"), as_json=as_json)


@click.command()
@common
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="TCP port; picked once and kept otherwise.")
@run_async
async def validate(folder: StateFolder, as_json: bool, port: int) -> None:
    """Validate the further networks: stake once, sign what you see.

    Joins each network with a key of its own. Every promise is on disk before it is signed. Never run one key in two
    folders: two signatures for one thing cost half the stake.
    """
    await _serve(folder, RoleSpec("validator-1", "validator", port), as_json=as_json)


@click.command()
@common
@run_async
async def relay(folder: StateFolder, as_json: bool) -> None:
    """Carry validator sets and messages between networks.

    Pays gas on each, and needs nobody's trust.
    """
    await _serve(folder, RoleSpec("relayer-1", "relayer"), as_json=as_json)

"""`key`: who may ask this folder's gateway, how much, and for how long."""

from decimal import Decimal
from typing import TYPE_CHECKING

import click

from deaios.cli.terminal import common, emit_json, run_async, say
from deaios.node.folder import StateFolder

if TYPE_CHECKING:
    from deaios.node.api_keys import ApiKey

_BUDGET = click.option("--budget", type=Decimal, help="Most that it may spend in all, in credits.")
_REQUESTS = click.option("--requests", type=int, metavar="N", help="Requests per minute.")
_TOKENS = click.option("--tokens", type=int, metavar="N", help="Tokens per minute, prompt and answer together.")


@click.group()
def key() -> None:
    """Make, list, limit and revoke API keys of this folder's gateway."""


@key.command()
@common
@click.argument("name")
@_BUDGET
@click.option("--model", "models", multiple=True, help="A model that it may use; several times for several.")
@click.option("--days", type=int, help="Until it expires.")
@_REQUESTS
@_TOKENS
@click.option(
    "--data-policy",
    type=click.Choice(["any", "deny", "zdr"]),
    default="any",
    show_default=True,
    help="What providers must promise: deny, not to train on what they see; zdr, nor to keep it.",
)
@run_async
async def create(
    folder: StateFolder,
    as_json: bool,
    name: str,
    budget: Decimal | None,
    models: tuple[str, ...],
    days: int | None,
    requests: int | None,
    tokens: int | None,
    data_policy: str,
) -> None:
    """Make a key; its text is shown once and kept nowhere."""
    from deaios.market.preferences import DataPolicy  # noqa: PLC0415 - keeps `--help` quick
    from deaios.node.api_keys import create_key  # noqa: PLC0415 - keeps `--help` quick

    made = create_key(
        folder,
        name,
        budget=budget,
        models=models,
        days=days,
        requests_per_minute=requests,
        tokens_per_minute=tokens,
        data_policy=DataPolicy(data_policy),
    )
    _show(made, as_json=as_json)


@key.command("list")
@common
@run_async
async def list_(folder: StateFolder, as_json: bool) -> None:
    """All keys, with what they spent."""
    from deaios.node.api_keys import list_keys  # noqa: PLC0415 - the same

    found = list_keys(folder)
    if as_json:
        emit_json(found)
        return
    for item in found:
        _say(item)


@key.command()
@common
@click.argument("key_id")
@_BUDGET
@_REQUESTS
@_TOKENS
@run_async
async def limit(
    folder: StateFolder,
    as_json: bool,
    key_id: str,
    budget: Decimal | None,
    requests: int | None,
    tokens: int | None,
) -> None:
    """Set budget and rates; what is left out has no limit from then on."""
    from deaios.node.api_keys import limit_key  # noqa: PLC0415 - the same

    changed = limit_key(folder, key_id, budget=budget, requests_per_minute=requests, tokens_per_minute=tokens)
    _show(changed, as_json=as_json)


@key.command()
@common
@click.argument("key_id")
@run_async
async def revoke(folder: StateFolder, as_json: bool, key_id: str) -> None:
    """Refuse a key from now on."""
    from deaios.node.api_keys import revoke_key  # noqa: PLC0415 - the same

    _show(revoke_key(folder, key_id), as_json=as_json)


def _show(item: "ApiKey", *, as_json: bool) -> None:
    emit_json(item) if as_json else _say(item)


def _say(item: "ApiKey") -> None:
    if item.key is not None:
        say(item.key)
    state = "revoked" if item.revoked_at_ms is not None else f"{item.spent} of {item.budget or 'any'} credits spent"
    rates = f"{item.requests_per_minute or 'any'} requests, {item.tokens_per_minute or 'any'} tokens per minute"
    models = ", ".join(item.models or ["all"])
    say(f"{item.id}  {item.name}: {state}; {rates}; models: {models}; data policy: {item.data_policy}")

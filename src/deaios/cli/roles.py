"""`provide`, `store`, `audit`, `validate`, `relay`: earn in a network that this folder has joined."""

from pathlib import Path

import click
import msgspec

from deaios.cli.terminal import common, emit_json, run_async, say
from deaios.node.folder import RoleSpec, StateFolder, UpstreamSpec


async def serve_role(folder: StateFolder, spec: RoleSpec, *, as_json: bool) -> None:
    """Run one role in the foreground until Ctrl-C."""
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
@click.option("--model", metavar="FILE|ID|NAME", help="A GGUF file of yours, or a model of the catalogue.")
@click.option("--price", metavar="IN:OUT", help="Credit per million prompt and sampled tokens, such as 0.5:2.")
@click.option("--price-max", metavar="IN:OUT", help="Let the price follow your load, from --price up to this.")
@click.option("--name", default="", help="What users call your file's model; from the file otherwise.")
@click.option(
    "--class",
    "noise_class",
    type=click.Choice(["F", "Q"]),
    help="Serve your file's weights as floats (F), or as they are (Q).",
)
@click.option("--upstream", metavar="URL", help="Sell the answers of this server (vLLM, llama-server, Ollama, …).")
@click.option("--upstream-model", metavar="NAME", default="", help="The server's name for the model.")
@click.option(
    "--upstream-key-file",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path),
    help="File that holds the server's API key.",
)
@click.option("--upstream-dialect", metavar="KIND", default="", help="Kind of server, where it does not say.")
@click.option(
    "--unauditable",
    metavar="NAME",
    help="Publish and sell the server's model under a record that says that nobody can check it: for closed APIs.",
)
@click.option(
    "--level", type=click.IntRange(0, 2), help="What the server's answers promise; the most it can, otherwise."
)
@click.option("--relay", metavar="URL", default="", help="Be reached through this relay; `direct` for none.")
@run_async
async def provide(
    folder: StateFolder,
    as_json: bool,
    port: int,
    model: str | None,
    price: str | None,
    price_max: str | None,
    name: str,
    noise_class: str | None,
    upstream: str | None,
    upstream_model: str,
    upstream_key_file: Path | None,
    upstream_dialect: str,
    unauditable: str | None,
    level: int | None,
    relay: str,
) -> None:
    """Run a model for others and be paid per answer.

    Takes the network's default model, another of its catalogue (--model NAME or ID, fetched from storage), or a GGUF
    file of yours (--model FILE: calibrated, stored and published first). Stakes, registers, and serves until Ctrl-C.
    Earnings are claimed as you go; see `deaios earnings` and `deaios wallet`. With --upstream, another server computes;
    its offers say honestly how far anybody can check it (docs/engines.md). Where nobody can dial this machine, a
    gateway of the network passes requests on. Without money, a sponsor lends the first stake, where the network has
    one; the first earnings repay it.
    """
    if upstream is None and (
        upstream_model or upstream_key_file or upstream_dialect or unauditable or level is not None
    ):
        raise click.UsageError("--upstream-…, --unauditable and --level need --upstream")
    if unauditable and (model or name or noise_class or level):
        raise click.UsageError("--unauditable names the model, and its level is 0")
    key_file = str(upstream_key_file or "")
    server = UpstreamSpec(upstream, upstream_model, key_file, upstream_dialect, level) if upstream else None
    if model is None and (name or noise_class):
        raise click.UsageError("--name and --class need --model FILE")
    if unauditable:
        spec = await _arrange_unauditable(folder, unauditable, price, port, as_json=as_json)
    elif model is None and price is None:
        spec = RoleSpec("provider-1", "provider", port)
    else:
        spec = await _arrange(folder, model, price, name, noise_class, port, as_json=as_json)
    if price_max is not None:
        spec = _let_move(spec, price_max)
    await serve_role(folder, msgspec.structs.replace(spec, upstream=server, relay=relay), as_json=as_json)


def _let_move(spec: RoleSpec, price_max: str) -> RoleSpec:
    """The same role with a price that follows load."""
    from deaios.node.providing import read_price  # noqa: PLC0415 - keeps `--help` quick

    input_max, output_max = read_price(price_max)
    return msgspec.structs.replace(spec, input_price_max=input_max, output_price_max=output_max)


async def _arrange_unauditable(
    folder: StateFolder, name: str, price: str | None, port: int, *, as_json: bool
) -> RoleSpec:
    from deaios.cli.models import show_work  # noqa: PLC0415 - keeps `--help` quick
    from deaios.node.unauditable import arrange_unauditable  # noqa: PLC0415 - keeps `--help` quick

    with show_work(hidden=as_json) as progress:
        spec = await arrange_unauditable(folder, name, price, port, progress)
    if not as_json:
        say(f"selling {name} unaudited, record {spec.record}")
    return spec


async def _arrange(
    folder: StateFolder,
    model: str | None,
    price: str | None,
    name: str,
    noise_class: str | None,
    port: int,
    *,
    as_json: bool,
) -> RoleSpec:
    """The role that sells a model at a price; calibrates, stores and publishes a file first."""
    from deaios.cli.models import show_work  # noqa: PLC0415 - keeps `--help` quick
    from deaios.compute.records import NoiseClass  # noqa: PLC0415 - keeps `--help` quick
    from deaios.node.offering import Choices  # noqa: PLC0415 - keeps `--help` quick
    from deaios.node.providing import arrange_role  # noqa: PLC0415 - keeps `--help` quick

    choices = Choices(name=name, noise_class=NoiseClass(noise_class) if noise_class else None)
    with show_work(hidden=as_json) as progress:
        spec, found = await arrange_role(folder, model, price, choices, port, progress)
    if not as_json:
        say(f"selling {found.full_name}, record 0x{found.record_id.hex()}")
    return spec


@click.command()
@common
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="TCP port; picked once and kept otherwise.")
@run_async
async def store(folder: StateFolder, as_json: bool, port: int) -> None:
    """Keep coded rows of other people's files."""
    await serve_role(folder, RoleSpec("storage-1", "storage", port), as_json=as_json)


@click.command()
@common
@run_async
async def audit(folder: StateFolder, as_json: bool) -> None:
    """Buy as users do, re-execute, dispute what is wrong, and sit on juries."""
    await serve_role(folder, RoleSpec("auditor-1", "auditor"), as_json=as_json)


@click.command()
@common
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="TCP port; picked once and kept otherwise.")
@run_async
async def validate(folder: StateFolder, as_json: bool, port: int) -> None:
    """Validate the further networks: stake once, sign what you see.

    Joins each network with a key of its own. Every promise is on disk before it is signed. Never run one key in two
    folders: two signatures for one thing cost half the stake.
    """
    await serve_role(folder, RoleSpec("validator-1", "validator", port), as_json=as_json)


@click.command()
@common
@run_async
async def relay(folder: StateFolder, as_json: bool) -> None:
    """Carry validator sets and messages between networks.

    Pays gas on each, and needs nobody's trust.
    """
    await serve_role(folder, RoleSpec("relayer-1", "relayer"), as_json=as_json)

"""`chain`: follow another network's chain, carry one in and out of files, check it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deaios.cli.terminal import common, emit_json, errors, run_async, say
from deaios.node.folder import StateFolder
from deaios.primitives.encoding import decode_hex, encode_hex
from deaios.primitives.errors import Invalid

if TYPE_CHECKING:
    from deaios.chain.service.archive import Step
    from deaios.chain.service.follower import Progress as FollowerProgress
    from deaios.node.history import ChainFile, Role

_ROLES = click.Choice(["chain", "follower"])


class _Hash(click.ParamType[bytes]):
    """32 bytes in hex."""

    name = "0xHASH"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        if isinstance(value, bytes):
            return value
        try:
            return decode_hex(str(value).lower(), 32)
        except Invalid as error:
            self.fail(str(error), param, ctx)


@contextmanager
def _counting(*, hidden: bool) -> "Iterator[Callable[[Step], None]]":
    """A bar that counts steps, on standard error and only where somebody looks."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=hidden or not errors.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda step: progress.update(task, description=step.what, completed=step.done, total=step.total or None)


@click.group()
def chain() -> None:
    """Follow a chain, export and import it, check it.

    A follower runs every block itself and compares: gas, logs and the commitment to the whole state, under the
    operator's signature. So two nodes that stand at one height with one state commitment have the same state, and an
    operator that signs two different blocks for one height convicts itself.
    """


_genesis_option = click.option(
    "--genesis-hash",
    type=_Hash(),
    help="Hash of block 0 that you trust; without it, the network that --dir has joined, or the copy in it.",
)
_role_option = click.option("--role", type=_ROLES, help="Which chain of the folder; its own, or else the copy.")


@chain.command()
@click.argument("url")
@_genesis_option
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="TCP port; picked once and kept otherwise.")
@click.option("--no-forward", is_flag=True, help="Refuse eth_sendRawTransaction instead of handing it to URL.")
@common
@run_async
async def follow(
    url: str, folder: StateFolder, as_json: bool, genesis_hash: bytes | None, port: int, no_forward: bool
) -> None:
    """Keep a verified, read-only copy of the chain at URL and serve it until Ctrl-C.

    URL is the JSON-RPC of a chain or of another follower; it is not trusted. Trusted is the hash of block 0: from
    --genesis-hash, or from the network this folder has joined. Each block is run here and compared before anybody can
    read it; if one differs, this ends with exit code 1, names the field and both values, and leaves evidence in
    roles/follower/evidence. The copy answers every read that the chain answers. It survives kill -9, and a source
    that goes away is asked again until it is back.
    """
    from deaios.node.following import follow_chain  # noqa: PLC0415 - keeps `--help` quick

    with _showing(hidden=as_json) as report:
        async with follow_chain(
            folder, url, genesis_hash=genesis_hash, port=port, is_forwarding=not no_forward, report=report
        ) as following:
            if as_json:
                emit_json(
                    {
                        "url": following.url,
                        "source": url,
                        "genesis_hash": encode_hex(following.chain.genesis_hash),
                        "height": following.chain.head.number,
                    }
                )
            else:
                say(f"following {url} from block {following.chain.head.number} on", style="green")
                say(f"  Ethereum RPC {following.url}   (read-only; stop with Ctrl-C)")
            await following.wait_until_stopped()


@contextmanager
def _showing(*, hidden: bool) -> "Iterator[Callable[[FollowerProgress], None]]":
    """Tells people when the copy has caught up, and when the source is silent; a bar in between."""
    last = [""]

    def tell(text: str) -> None:
        if not hidden and text != last[0]:
            errors.print(text, markup=False)
        last[0] = text

    columns = (TextColumn("catching up"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=hidden or not errors.is_terminal) as progress:
        task = progress.add_task("", total=None, visible=False)

        def report(found: "FollowerProgress") -> None:
            if found.trouble:
                tell(f"the source gives nothing: {found.trouble}; asked again")
                return
            progress.update(
                task, completed=found.height, total=found.source_height, visible=found.height < found.source_height
            )
            if last[0] or found.height == found.source_height:
                tell("" if found.height < found.source_height else "the copy is at the source's newest block")

        yield report


@chain.command("export")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--from", "first", type=click.IntRange(0), metavar="BLOCK", help="First block; the oldest kept one.")
@click.option("--to", "last", type=click.IntRange(0), metavar="BLOCK", help="Last block; the newest signed one.")
@click.option("--state", "is_state", is_flag=True, help="The state after the newest block, instead of blocks.")
@_role_option
@common
@run_async
async def export(
    file: Path,
    folder: StateFolder,
    as_json: bool,
    first: int | None,
    last: int | None,
    is_state: bool,
    role: "Role | None",
) -> None:
    """Write blocks, or the state, into FILE.

    Blocks are imported by running them all, which trusts nothing but block 0. A state is imported in a moment and
    trusts the operator's signature for what came before. The chain may be running. FILE appears when it is whole;
    parts made with --from and --to are imported one after another.
    """
    from deaios.node.history import export_history  # noqa: PLC0415 - keeps `--help` quick

    if is_state and (first is not None or last is not None):
        raise click.UsageError("--state is of the newest block; --from and --to choose blocks")
    with _counting(hidden=as_json) as report:
        done = await export_history(folder, file, role, first=first, last=last, is_state=is_state, report=report)
    if as_json:
        emit_json(
            {
                "file": str(file),
                "size_bytes": done.size_bytes,
                "genesis_hash": encode_hex(done.genesis_hash),
                "first": done.first,
                "last": done.last,
                "state_commitment": encode_hex(done.state_commitment) if done.state_commitment else None,
            }
        )
        return
    what = f"the state after block {done.last}" if is_state else f"blocks {done.first} to {done.last}"
    say(f"{file} ({done.size_bytes:,} bytes): {what}")
    if done.state_commitment:
        say(f"state commitment {encode_hex(done.state_commitment)}")


@chain.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_genesis_option
@common
@run_async
async def import_(file: Path, folder: StateFolder, as_json: bool, genesis_hash: bytes | None) -> None:
    """Read FILE into this folder's read-only copy.

    Blocks are run and compared one by one; interrupted, the same import goes on where it stopped. A state is accepted
    when its commitment, computed anew, is the one that the operator signed. Go on with `deaios chain follow URL`.
    """
    from deaios.node.history import import_history  # noqa: PLC0415 - keeps `--help` quick

    with _counting(hidden=as_json) as report:
        done = await import_history(folder, file, genesis_hash, report)
    if as_json:
        emit_json(
            {
                "genesis_hash": encode_hex(done.genesis_hash),
                "executed": done.executed,
                "known": done.known,
                "height": done.height,
                "state": done.is_state,
            }
        )
    elif done.is_state:
        say(f"the state after block {done.height}, with the commitment that the operator signed", style="green")
        say("trusts the operator's signature for the blocks before it, which were not run here")
    else:
        say(f"{done.executed} blocks run and compared, {done.known} were here; height {done.height}", style="green")


@chain.command()
@click.option("--execute", "is_executing", is_flag=True, help="Also run every block again from block 0 on.")
@_role_option
@common
@run_async
async def check(folder: StateFolder, as_json: bool, is_executing: bool, role: "Role | None") -> None:
    """Check a chain's file: headers, signatures, roots, senders, and the commitment to the state.

    Ends with 1 and says what differs, at which block, with both values, when it is not sound. Writes nothing.
    """
    from deaios.node.history import check_history  # noqa: PLC0415 - keeps `--help` quick

    with _counting(hidden=as_json) as report:
        done = await check_history(folder, role, is_executing=is_executing, report=report)
    if as_json:
        emit_json(
            {
                "sound": True,
                "genesis_hash": encode_hex(done.genesis_hash),
                "operator": encode_hex(done.operator),
                "height": done.height,
                "oldest_block": done.oldest_block,
                "blocks": done.blocks,
                "transactions": done.transactions,
                "accounts": done.accounts,
                "slots": done.slots,
                "unsigned": done.unsigned,
                "state_commitment": encode_hex(done.state_commitment),
                "executed": done.is_executed,
            }
        )
        return
    say(f"sound up to block {done.height}", style="green")
    how = "run again with the same result" if done.is_executed else "with the roots and gas that their headers say"
    say(f"  {done.blocks} blocks, {done.transactions} transactions, {how}")
    say(f"  {done.accounts} accounts and {done.slots} words have state commitment {encode_hex(done.state_commitment)}")
    if done.unsigned:
        say(f"  the last {done.unsigned} blocks have no signature yet")


@chain.command()
@common
@run_async
async def status(folder: StateFolder, as_json: bool) -> None:
    """Show this folder's chain and its copy of another: height, hash, state commitment, source."""
    from deaios.node.history import describe_chains  # noqa: PLC0415 - keeps `--help` quick

    found = await describe_chains(folder)
    if as_json:
        emit_json(found)
        return
    if not found:
        say(f"no chain in {folder.root}; `deaios up` makes one, `deaios chain follow URL` copies one")
    for item in found:
        _show(item)


def _show(item: "ChainFile") -> None:
    say(f"{item.role}: block {item.height}", style="bold")
    say(f"  hash             {item.hash}")
    say(f"  state commitment {item.state_commitment}")
    say(f"  genesis          {item.genesis_hash}  (chain id {item.chain_id}, operator {item.operator})")
    say(f"  file             {item.file} ({item.size_bytes:,} bytes), blocks from {item.oldest_block} on")
    say(f"  Ethereum RPC     {item.url or 'stopped'}")
    if item.source:
        height = "unreachable" if item.source_height is None else f"block {item.source_height}"
        say(f"  source           {item.source}  {height}")
    if item.unsigned:
        say(f"  {item.unsigned} blocks at the end have no signature yet")
    if item.trouble:
        say(f"  ended because    {item.trouble}", style="red")

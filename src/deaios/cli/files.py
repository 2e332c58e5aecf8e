"""`put` and `get`: files as verified coded rows on storage nodes."""

import os
from pathlib import Path

import click

from deaios.cli.terminal import bar, common, emit_json, run_async, say
from deaios.node.folder import StateFolder
from deaios.primitives.encoding import decode_hex, encode_hex


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@common
@run_async
async def put(file: Path, folder: StateFolder, as_json: bool) -> None:
    """Store FILE on the network's storage nodes and print its id."""
    from deaios.node.session import open_session  # noqa: PLC0415 - keeps `--help` quick

    size = os.stat(file).st_size  # noqa: PTH116 - one look, before anything runs beside it
    async with open_session(folder) as session:
        storage = await session.storage()
        with bar(hidden=as_json) as progress:
            task = progress.add_task(file.name, total=size)
            manifest = await storage.put_file(
                file, progress=lambda done, total: progress.update(task, completed=done, total=total)
            )
    if as_json:
        emit_json({"id": encode_hex(manifest), "size_bytes": size})
    else:
        say(encode_hex(manifest))


@click.command()
@click.argument("identifier", metavar="ID")
@common
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Where to; ./ID otherwise.")
@run_async
async def get(identifier: str, folder: StateFolder, as_json: bool, output: Path | None) -> None:
    """Fetch the file with this ID; every row is verified before it is used."""
    from deaios.node.session import open_session  # noqa: PLC0415 - keeps `--help` quick

    manifest = decode_hex(identifier, 32)
    target = output or Path(identifier)
    async with open_session(folder) as session:
        storage = await session.storage()
        with bar(hidden=as_json) as progress:
            task = progress.add_task(target.name, total=None)
            found = await storage.get_file(
                manifest, target, progress=lambda done, total: progress.update(task, completed=done, total=total)
            )
    if as_json:
        emit_json({"id": identifier, "file": str(target), "size_bytes": found.size_bytes})
    else:
        say(f"{target} ({found.size_bytes:,} bytes), every row verified")

"""`demo`: the main job, end to end, in a scratch folder."""

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deaios.cli.abroad import chain_options
from deaios.cli.terminal import console, emit_json, errors, run_async, say
from deaios.node.folder import StateFolder

if TYPE_CHECKING:
    from deaios.node.foreign import Wanted


@click.command()
@click.option("--keep", is_flag=True, help="Keep the scratch folder, with logs, for a look afterwards.")
@click.option(
    "--dir",
    "chosen",
    type=click.Path(file_okay=False, path_type=Path),
    help="Use this folder, and keep it, instead of a scratch folder.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON value at the end instead of text.")
@chain_options
@run_async
async def demo(keep: bool, chosen: Path | None, as_json: bool, abroad: "Wanted | None") -> None:
    """Start a network, ask, verify, pay, catch a cheat; about two minutes.

    Nothing in it is scripted to succeed: it runs what `up`, `ask` and `verify` run, and fails when a step does not
    happen.
    """
    from deaios.node.demo import Demo, Voice  # noqa: PLC0415 - keeps `--help` quick

    folder = chosen or Path(tempfile.mkdtemp(prefix="deaios-demo-"))
    if as_json:
        voice = Voice(heading=lambda _text: None, line=lambda _text: None, piece=lambda _text: None)
    else:
        voice = Voice(
            heading=lambda text: console.print(f"\n[bold cyan]{text}[/]"),
            line=say,
            piece=lambda text: console.print(text, end="", markup=False),
        )
    run = Demo(StateFolder(folder), voice, wanted=abroad)
    with ExitStack() as unfinished:  # whoever stops the demo, by Ctrl-C too, wants to know where its logs are
        kept = f"the demo did not finish; its folder and logs are kept: {folder}"
        unfinished.callback(errors.print, kept, style="red")
        await run.run()
        unfinished.pop_all()
    if keep or chosen is not None:
        run.summary["folder"] = str(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        emit_json(run.summary)
        return
    if "folder" in run.summary:
        say(f"kept {folder}")
    console.print("\n[bold green]done: a question, a verified answer, an honest provider paid, a cheat slashed[/]")

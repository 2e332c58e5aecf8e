"""`demo`: the main job, end to end, in a scratch folder."""

import shutil
import tempfile
from pathlib import Path

import click

from deaios.cli.terminal import console, errors, run_async, say
from deaios.node.folder import StateFolder


@click.command()
@click.option("--keep", is_flag=True, help="Keep the scratch folder, with logs, for a look afterwards.")
@run_async
async def demo(keep: bool) -> None:
    """Start a network, ask, verify, pay, catch a cheat; about two minutes.

    Nothing in it is scripted to succeed: it runs what `up`, `ask` and `verify` run, and fails when a step does not
    happen.
    """
    from deaios.node.demo import Demo, Voice  # noqa: PLC0415 - keeps `--help` quick

    folder = Path(tempfile.mkdtemp(prefix="deaios-demo-"))
    voice = Voice(
        heading=lambda text: console.print(f"\n[bold cyan]{text}[/]"),
        line=say,
        piece=lambda text: console.print(text, end="", markup=False),
    )
    try:
        await Demo(StateFolder(folder), voice).run()
    except BaseException:
        errors.print(f"the demo did not finish; its folder and logs are kept: {folder}", style="red")
        raise
    if keep:
        say(f"kept {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    console.print("\n[bold green]done: a question, a verified answer, an honest provider paid, a cheat slashed[/]")

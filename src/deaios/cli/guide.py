"""`connect` and `doctor`: what to paste where, and what is missing here."""

from pathlib import Path

import click

from deaios.cli.terminal import common, console, emit_json, run_async, say
from deaios.node.folder import StateFolder


@click.command()
@click.argument("what", type=click.Choice(["openai", "wallet"]))
@common
@run_async
async def connect(what: str, folder: StateFolder, as_json: bool) -> None:
    """Print what to export (openai) or to paste into a wallet (wallet)."""
    from deaios.node.status import read_connection  # noqa: PLC0415 - keeps `--help` quick

    lines = await read_connection(folder, what)
    if as_json:
        emit_json(lines)
    elif what == "openai":
        for key, value in lines.items():
            say(f"export {key}={value}")
    else:
        for key, value in lines.items():
            say(f"{key + ':':16} {value}")


@click.command()
@common
@click.option(
    "--model", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Adopt this copy of the model file."
)
@run_async
async def doctor(folder: StateFolder, as_json: bool, model: Path | None) -> int:
    """Check this machine: what is missing, and how to get it."""
    from deaios.node.doctor import examine  # noqa: PLC0415 - keeps `--help` quick

    findings = examine(folder, model)
    if as_json:
        emit_json(findings)
    else:
        for finding in findings:
            console.print("[green]✓[/] " if finding.ok else "[red]✗[/] ", end="")
            say(f"{finding.name}: {finding.says}")
            if finding.fix:
                say(f"    {finding.fix}", style="yellow")
    return 0 if all(finding.ok for finding in findings) else 2

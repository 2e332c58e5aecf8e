"""How commands speak: short lines for people, `--json` for scripts, errors that say what to do."""

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from deaios.node.folder import StateFolder, default_folder, pretty_json
from deaios.primitives.errors import DeaiosError
from deaios.runtime.errors import EXIT_UNEXPECTED, exit_code
from deaios.runtime.logs import log_to_stderr

if TYPE_CHECKING:
    from deaios.alignment.facts import Verification

EXIT_INTERRUPTED = 130
P = ParamSpec("P")
T = TypeVar("T")

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def common(command: Callable[P, Any]) -> Callable[P, Any]:  # Any: click wraps what it likes
    """Options that every command has: `--dir` and `--json`."""
    command = click.option("--json", "as_json", is_flag=True, help="Print one JSON value instead of text.")(command)
    return click.option(
        "--dir",
        "folder",
        type=click.Path(file_okay=False, path_type=Path),
        default=default_folder,
        show_default=os.environ.get("DEAIOS_DIR") or "the user data directory",
        help="State folder: keys, descriptor, data and logs.",
        callback=lambda _context, _option, value: StateFolder(value),
    )(command)


def run_async(command: Callable[P, Coroutine[Any, Any, int | None]]) -> Callable[P, None]:
    """Make a click command of a coroutine: typed errors become messages and exit codes, Ctrl-C ends cleanly."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        log_to_stderr()
        try:
            sys.exit(asyncio.run(command(*args, **kwargs)) or 0)
        except DeaiosError as error:
            fail(error, as_json=bool(kwargs.get("as_json")))
        except KeyboardInterrupt:
            errors.print("interrupted")
            sys.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:
            sys.stderr.close()
            sys.exit(EXIT_UNEXPECTED)

    return run


def fail(error: DeaiosError, *, as_json: bool) -> NoReturn:
    """Say what is wrong and end with the table's exit code."""
    if as_json:
        click.echo(pretty_json({"error": {"type": type(error).__name__, "message": str(error)}}))
    else:
        errors.print(f"[red]{type(error).__name__}[/red]: ", end="")
        errors.print(str(error), markup=False)
    sys.exit(exit_code(error))


def emit_json(value: object) -> None:
    """One JSON value on standard output."""
    click.echo(pretty_json(value))


def show_facts(result: "Verification") -> None:
    """A check's facts under their heads, and its headline."""
    for head, facts in result.by_head():
        say(f"{head.value}:", style="bold")
        for fact in facts:
            # what rests on somebody's word alone is neither right nor wrong
            is_word = head.name in ("GATEWAY", "PROMISED")
            sign = "[red]✗[/]" if not fact.holds else "[yellow]·[/]" if is_word else "[green]✓[/]"
            console.print(f"  {sign} ", end="")
            say(f"{fact.rule}: {fact.says}")
    style = {0: "bold green", 1: "bold red"}.get(result.outcome.value, "bold yellow")
    say(result.headline, style=style)


def bar(*, hidden: bool) -> Progress:
    """A progress bar for a transfer, on standard error and only where somebody looks."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=errors, transient=True, disable=hidden or not errors.is_terminal)


def say(text: str = "", *, style: str | None = None) -> None:
    """One line for people; brackets in it are text, not markup."""
    console.print(text, style=style, markup=False)

"""`calibrate`, `models`, `earnings`: a user's own model, what the catalogue holds, and what offering it brings."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from deaios.cli.terminal import common, emit_json, errors, run_async, say
from deaios.node.folder import StateFolder
from deaios.primitives.units import format_credit


@contextmanager
def show_work(*, hidden: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Long work on standard error: a bar where somebody looks, a line per step elsewhere, nothing where hidden."""
    if hidden:
        yield lambda _what, _done, _total: None
        return
    if not errors.is_terminal:
        said: set[str] = set()

        def tell(what: str, _done: int, _total: int) -> None:
            if what not in said:
                said.add(what)
                errors.print(what, markup=False)

        yield tell
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        tasks: dict[str, int] = {}

        def draw(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=None)
            progress.update(tasks[what], completed=done, total=total or None)  # type: ignore[arg-type]  # a task's id is an int

        yield draw


NOISE_CLASS = click.Choice(["F", "Q"])


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@common
@click.option("--class", "noise_class", type=NOISE_CLASS, help="F: float weights (or their expansion). Q: as it is.")
@click.option("--tokens", type=click.IntRange(256), default=1024, show_default=True, help="Honest tokens each way.")
@click.option("--threads", type=click.IntRange(0), default=0, help="0 takes all cores.")
@click.option(
    "--out", type=click.Path(dir_okay=False, resolve_path=True, path_type=Path), help="Also write the evidence here."
)
@run_async
async def calibrate(
    file: Path,
    folder: StateFolder,
    as_json: bool,
    noise_class: str | None,
    tokens: int,
    threads: int,
    out: Path | None,
) -> None:
    """Measure how far two honest engines of FILE are apart, and keep what its record will say.

    Runs a fixed prompt set both ways; an interrupted run goes on where it stopped. `deaios provide --model FILE` does
    this by itself where it was not done.
    """
    from deaios.compute.records import NoiseClass  # noqa: PLC0415 - keeps `--help` quick
    from deaios.node.offering import Choices, prepare_model  # noqa: PLC0415 - keeps `--help` quick
    from deaios.runtime.disk import write_atomic  # noqa: PLC0415 - keeps `--help` quick

    choices = Choices(noise_class=NoiseClass(noise_class) if noise_class else None, tokens=tokens, threads=threads)
    with show_work(hidden=as_json) as progress:
        prepared = await asyncio.to_thread(prepare_model, folder, file, choices, progress)
    outcome = prepared.outcome
    if out is not None:
        write_atomic(out, outcome.evidence)
    facts = {
        "name": prepared.name,
        "class": outcome.noise_class.value,
        "serving": prepared.serving,
        "quantisation": prepared.quantisation,
        "honest_tokens": outcome.calibration.tokens,
        "margin_max": outcome.calibration.margin_max_micro / 1e6,
        "margin_limit": outcome.thresholds.margin,
        "edge_limit": outcome.thresholds.epsilon,
        "selftest_limit": outcome.deviation_max,
        "replayable": bool(outcome.replay_profiles),
        "chat_template": prepared.has_template,
        "context_tokens": prepared.context_tokens,
        "evidence": str(out or prepared.evidence),
        "evidence_sha256": "0x" + outcome.calibration.evidence.hex(),
    }
    if as_json:
        emit_json(facts)
        return
    for key, value in facts.items():
        say(f"{key.replace('_', ' '):16} {value}")


@click.command()
@common
@run_async
async def models(folder: StateFolder, as_json: bool) -> None:
    """List the catalogue's models and who offers them now."""
    from deaios.node.market_view import list_models  # noqa: PLC0415 - keeps `--help` quick

    found = await list_models(folder)
    if as_json:
        emit_json(found)
        return
    for entry in found:
        prices = (
            f"{format_credit(entry.input_price)}:{format_credit(entry.output_price)} per million"
            if entry.providers
            else "not offered now"
        )
        say(f"{entry.name:40} class {entry.noise_class}  {entry.providers} providers  {prices}")
        say(
            f"    {entry.record}  {entry.quantisation}, {entry.size_bytes / 1e6:.1f} MB, context {entry.context_tokens}"
        )


@click.command()
@common
@run_async
async def earnings(folder: StateFolder, as_json: bool) -> None:
    """What this folder's providers earned, how they stand against others, and why a buyer would not choose them."""
    from deaios.node.market_view import read_earnings  # noqa: PLC0415 - keeps `--help` quick

    found = await read_earnings(folder)
    if as_json:
        emit_json(found)
        return
    if not found:
        say("no provider runs from this folder; start one with `deaios provide`")
    for entry in found:
        say(f"{entry.name} ({entry.provider}) sells {entry.model}", style="bold")
        say(f"  earned {format_credit(entry.earned)} credit with {entry.receipts} receipts, {entry.tokens} tokens sold")
        if entry.per_day is not None:
            say(f"  at the pace of the last {entry.seen_s // 60} minutes: {format_credit(entry.per_day)} credit a day")
        else:
            say("  no forecast: too little was sold to say anything")
        if entry.rivals:
            say(
                f"  {entry.rivals} others sell it; the cheapest asks {format_credit(entry.cheapest_output_price or 0)} "
                f"per million sampled tokens, you ask {format_credit(entry.output_price or 0)}"
            )
        for reason in entry.why_not:
            say(f"  not chosen because: {reason}", style="yellow")
        if not entry.why_not:
            say("  nothing keeps buyers from choosing it", style="green")

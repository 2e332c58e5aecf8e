"""`ask` and `verify`: a question, an answer, and a check that needs nobody's word."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import click

from deaios.cli.attest import AT, COLLATERAL, read_hex_of
from deaios.cli.terminal import common, console, emit_json, run_async, say, show_facts
from deaios.node.folder import StateFolder
from deaios.primitives.encoding import InvalidEncoding, decode_hex
from deaios.primitives.units import format_credit


def _at_gateway(command: Callable[..., None]) -> Callable[..., None]:
    """Options that say whom to ask."""
    for option in (
        click.option("--model", metavar="NAME", help="Model; the network's default otherwise."),
        click.option("--key", metavar="SK", envvar="DEAIOS_API_KEY", help="API key for it (or DEAIOS_API_KEY)."),
        click.option("--gateway", metavar="URL", help="Another gateway than this folder's."),
    ):
        command = option(command)
    return command


def _say_saved(save: Path | None) -> None:
    if save:
        say(f"saved to {save}; check it with `deaios verify {save}`", style="dim")


@click.command()
@click.argument("question")
@common
@click.option(
    "--save", type=click.Path(dir_okay=False, path_type=Path), help="Keep the answer with all that a check needs."
)
@_at_gateway
@click.option("--system", metavar="TEXT", help="System message.")
@click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.8, show_default=True)
@click.option("--seed", type=int, help="The same seed and question give the same answer.")
@click.option(
    "--level", type=click.IntRange(0, 4), help="Ask for this level of proof at least; 3 fingerprints, 4 replay."
)
@run_async
async def ask(
    question: str,
    folder: StateFolder,
    as_json: bool,
    save: Path | None,
    gateway: str | None,
    key: str | None,
    model: str | None,
    system: str | None,
    max_tokens: int,
    temperature: float,
    seed: int | None,
    level: int | None,
) -> None:
    """Ask QUESTION and stream the answer; with --save, keep proof of it."""
    from deaios.node.asking import ask_question  # noqa: PLC0415 - keeps `--help` quick

    messages = ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": question}]
    body: dict[str, object] = {"messages": messages, "max_tokens": max_tokens, "temperature": round(temperature, 3)}
    if seed is not None:
        body["seed"] = seed
    if level is not None:
        body["deaios"] = {"min_level": level}
    told, answer = await ask_question(
        folder, body, gateway=gateway, key=key, model=model, save=save,
        on_text=(lambda _piece: None) if as_json else (lambda piece: console.print(piece, end="", markup=False)),
        on_wait=(lambda _text: None) if as_json else (lambda text: say(text, style="dim")),
    )  # fmt: skip
    receipt = told.opening.receipt
    if as_json:
        emit_json(
            {
                "text": told.text,
                "provider": told.provider,
                "receipt": receipt.counter,
                "prompt_tokens": receipt.prompt_tokens,
                "completion_tokens": receipt.completion_tokens,
                "fee": format_credit(receipt.fee),
                "saved": str(save) if answer else None,
            }
        )
        return
    say()
    say(
        f"{receipt.completion_tokens} tokens from {told.provider}, receipt {receipt.counter}, "
        f"fee {format_credit(receipt.fee)} credit",
        style="dim",
    )
    _say_saved(save)


@click.command()
@click.argument("text")
@common
@click.option(
    "--save", type=click.Path(dir_okay=False, path_type=Path), help="Keep the vector with all that a check needs."
)
@_at_gateway
@run_async
async def embed(
    text: str,
    folder: StateFolder,
    as_json: bool,
    save: Path | None,
    gateway: str | None,
    key: str | None,
    model: str | None,
) -> None:
    """Get the vector of TEXT; with --save, keep proof of it for `deaios verify`."""
    from deaios.node.asking import embed_text  # noqa: PLC0415 - keeps `--help` quick

    told, vector, answer = await embed_text(
        folder, text, gateway=gateway, key=key, model=model, save=save,
        on_wait=(lambda _text: None) if as_json else (lambda words: say(words, style="dim")),
    )  # fmt: skip
    receipt = told.opening.receipt
    if as_json:
        emit_json(
            {
                "embedding": list(vector),
                "provider": told.provider,
                "receipt": receipt.counter,
                "prompt_tokens": receipt.prompt_tokens,
                "fee": format_credit(receipt.fee),
                "saved": str(save) if answer else None,
            }
        )
        return
    say(" ".join(f"{number:.6g}" for number in vector))
    say(
        f"{len(vector)} dimensions from {told.provider}, receipt {receipt.counter}, "
        f"fee {format_credit(receipt.fee)} credit",
        style="dim",
    )
    _say_saved(save)


def _read_nonce(_context: click.Context, _option: click.Parameter, value: str | None) -> bytes | None:
    try:
        return None if value is None else decode_hex(value, 32)
    except InvalidEncoding as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@common
@click.option("--chain", metavar="URL", help="Ethereum JSON-RPC to read from, instead of the descriptor's.")
@click.option("--descriptor", metavar="FILE_OR_URL", help="Network descriptor, where this folder has none.")
@click.option(
    "--model", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The model's file, if at hand."
)
@click.option("--engine", type=click.Choice(["llama", "numpy", "transformers"]), help="What recomputes the tokens.")
@click.option(
    "--nonce",
    metavar="0xHEX",
    callback=_read_nonce,
    help="The X-DeAIOS-Nonce that you sent, to prove that the body is yours.",
)
@click.option(
    "--quote", type=click.Path(dir_okay=False, path_type=Path), help="TDX quote of the provider's machine; adds facts."
)
@click.option("--image", type=read_hex_of(32), help="SHA-256 of the image that the provider says it runs.")
@COLLATERAL
@AT
@run_async
async def verify(
    file: Path,
    folder: StateFolder,
    as_json: bool,
    chain: str | None,
    descriptor: str | None,
    model: Path | None,
    engine: Literal["llama", "numpy", "transformers"] | None,
    nonce: bytes | None,
    quote: Path | None,
    image: bytes | None,
    collateral: Path | None,
    at_s: int | None,
) -> int:
    """Check a saved answer: signatures, question, price, batch on chain, and every token.

    Needs FILE, the model and a chain URL, never the gateway. A quote adds facts about the provider's machine and
    switches no other check off. Exit code 0: verified; 1: violation or forgery; 2: it
    cannot be checked now, and why; 64: wrong usage.
    """
    from deaios.node.attesting import QuoteFiles  # noqa: PLC0415 - keeps `--help` quick
    from deaios.node.verifying import Attested, verify_file  # noqa: PLC0415 - keeps `--help` quick

    if (quote is None) != (image is None) or (quote is None and (collateral is not None or at_s is not None)):
        raise click.UsageError("--quote and --image go together; --collateral and --at need them")
    attested = None if quote is None or image is None else Attested(QuoteFiles(quote, collateral, at_s), image)

    result = await verify_file(
        folder, file, chain=chain, descriptor=descriptor, model=model, engine=engine, nonce=nonce, attested=attested,
        report=(lambda _text: None) if as_json else (lambda text: say(text, style="dim")),
    )  # fmt: skip
    if as_json:
        emit_json(result.to_json())
        return result.outcome.value
    show_facts(result)
    return result.outcome.value

"""`attest`: keep published blobs for their terms; and `attest verify`, which checks a machine's TDX quote."""

from datetime import UTC, datetime
from pathlib import Path

import click

from deaios.cli.roles import serve_role
from deaios.cli.terminal import common, emit_json, run_async, show_facts
from deaios.node.folder import RoleSpec, StateFolder
from deaios.primitives.encoding import InvalidEncoding, decode_hex


def read_hex_of(size: int) -> "click.ParamType[bytes]":
    """An option that takes `size` bytes in hexadecimal."""

    class _Bytes(click.ParamType["bytes"]):
        name = "0xHEX"

        def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
            try:
                return value if isinstance(value, bytes) else decode_hex(str(value), size)
            except InvalidEncoding as error:
                self.fail(str(error), param, ctx)

    return _Bytes()


def read_time(_context: click.Context, _option: click.Parameter, value: str | None) -> int | None:
    """Unix seconds of an ISO 8601 time; UTC where it names no zone."""
    if value is None:
        return None
    try:
        time = datetime.fromisoformat(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return int((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp())


COLLATERAL = click.option(
    "--collateral",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Intel's certificates, revocation lists and TCB levels as JSON.",
)
AT = click.option(
    "--at", "at_s", metavar="TIME", callback=read_time, help="Time that the collateral is held to; now otherwise."
)


async def _serve(folder: StateFolder, as_json: bool, port: int) -> None:
    await serve_role(folder, RoleSpec("da-1", "da", port), as_json=as_json)


@click.group(invoke_without_command=True)
@common
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="TCP port; picked once and kept otherwise.")
@click.pass_context
def attest(context: click.Context, folder: StateFolder, as_json: bool, port: int) -> None:
    """Keep rows of published blobs for their terms, attest to them, and be paid for it.

    Stakes, registers, and takes rows from the next epoch on, when seats are apportioned anew. `attest verify` is
    another matter: it checks the quote of a trusted execution environment.
    """
    if context.invoked_subcommand is None:
        run_async(_serve)(folder, as_json, port)


@attest.command()
@click.argument("quote", type=click.Path(dir_okay=False, path_type=Path))
@common
@COLLATERAL
@AT
@click.option("--report-data", type=read_hex_of(64), help="The 64 bytes that the quote should carry.")
@click.option("--key", type=read_hex_of(20), help="Address whose receipts the machine signs.")
@click.option("--tensors-root", type=read_hex_of(32), help="Of the model that it serves.")
@click.option("--image", type=read_hex_of(32), help="SHA-256 of the image that it runs.")
@run_async
async def verify(
    folder: StateFolder,  # noqa: ARG001 - every command has it
    as_json: bool,
    quote: Path,
    collateral: Path | None,
    at_s: int | None,
    report_data: bytes | None,
    key: bytes | None,
    tensors_root: bytes | None,
    image: bytes | None,
) -> int:
    """Check an Intel TDX quote offline: form, debug mode, signatures, firmware, and whose key it is for.

    Name the key by --report-data, or by --key, --tensors-root and --image together. Exit code 0: all holds; 1: not
    genuine, in debug mode, out of date or for another key; 2: something could not be checked, and why; 64: wrong usage.
    """
    from deaios.alignment.attested import build_verification  # noqa: PLC0415 - keeps `--help` quick
    from deaios.compute.attestation import bind_report  # noqa: PLC0415 - as above
    from deaios.node.attesting import QuoteFiles  # noqa: PLC0415 - as above
    from deaios.primitives.keys import Address  # noqa: PLC0415 - as above

    parts = (key, tensors_root, image)
    if any(parts) and (report_data is not None or not all(parts)):
        raise click.UsageError("give --report-data, or --key, --tensors-root and --image together")
    wanted = report_data
    if key is not None and tensors_root is not None and image is not None:
        wanted = bind_report(Address(key), tensors_root, image)
    result = build_verification(QuoteFiles(quote, collateral, at_s).check(wanted))
    if as_json:
        emit_json(result.to_json())
    else:
        show_facts(result)
    return result.outcome.value

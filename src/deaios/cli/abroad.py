"""`--chain` and what belongs to it: the same options wherever a network is founded."""

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from deaios.node.foreign import Wanted

PASSWORD_VARIABLE = "DEAIOS_DEPLOYER_PASSWORD"  # noqa: S105 - the name of a variable
PASSWORD_BYTES_MAX = 4096


def chain_options(command: Callable[..., Any]) -> Callable[..., Any]:  # Any: click wraps what it likes
    """Options of a foreign chain, passed on as one argument `abroad`; None where none is wanted."""

    @click.option("--chain", "url", metavar="URL", help="Ethereum JSON-RPC of an existing chain to found on.")
    @click.option(
        "--deployer",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Keystore (version 3) of the key that deploys the contracts and hands out gas money.",
    )
    @click.option(
        "--password-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help=f"Its first line opens the keystore; {PASSWORD_VARIABLE} does otherwise, or you are asked.",
    )
    @click.option("--confirmations", type=click.IntRange(1), help="Blocks after which something counts as settled.")
    @click.option("--network-name", default="", help="Tells networks of one deployer on one chain apart.")
    @wraps(command)
    def run(
        *args: Any,  # Any: of the command
        url: str | None,
        deployer: Path | None,
        password_file: Path | None,
        confirmations: int | None,
        network_name: str,
        **kwargs: Any,  # Any: of the command
    ) -> Any:  # Any: of the command
        if url is None and (deployer or password_file or confirmations or network_name):
            raise click.UsageError("--deployer, --password-file, --confirmations and --network-name need --chain URL")
        wanted = None
        if url is not None:
            wanted = _build_wanted(url, deployer, password_file, confirmations, network_name)
        return command(*args, abroad=wanted, **kwargs)

    return run


def _build_wanted(
    url: str, deployer: Path | None, password_file: Path | None, confirmations: int | None, name: str
) -> "Wanted":
    from deaios.node.foreign import CONFIRMATIONS, Wanted  # noqa: PLC0415 - keeps `--help` quick

    password = _read_password(deployer, password_file) if deployer is not None else b""
    return Wanted(url, deployer, password, confirmations or CONFIRMATIONS, name)


def _read_password(deployer: Path, file: Path | None) -> bytes:
    if file is not None:
        try:
            with file.open("rb") as source:
                return source.read(PASSWORD_BYTES_MAX).split(b"\n", 1)[0].rstrip(b"\r")
        except OSError as error:
            raise click.UsageError(f"--password-file {file} cannot be read: {error}") from error
    if (known := os.environ.get(PASSWORD_VARIABLE)) is not None:
        return known.encode()
    return str(click.prompt(f"Password of {deployer}", hide_input=True, err=True)).encode()

"""The process of one role, as the supervisor has it forked; `python -m deaios.node.process FOLDER SPEC` is the same.

Ends on SIGTERM, SIGINT, or when the supervisor is gone (end of standard input). A typed error ends it with the table's
exit code and one line on standard error, which the supervisor shows as the reason.
"""

import asyncio
import contextlib
import importlib
import os
import signal
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import msgspec

from deaios.node.config import load_config
from deaios.node.context import RoleContext
from deaios.node.folder import RoleSpec, StateFolder, module_of
from deaios.node.keystore import Keystore
from deaios.primitives.errors import ConfigError, DeaiosError, Unavailable
from deaios.runtime.clock import SystemClock
from deaios.runtime.connections import raise_descriptor_limit
from deaios.runtime.dice import SystemDice
from deaios.runtime.errors import EXIT_UNEXPECTED, exit_code
from deaios.runtime.journal import is_world_fault
from deaios.runtime.logs import configure_logs, get_logger
from deaios.runtime.metrics import Metrics

RunRole = Callable[[RoleContext], Awaitable[None]]


def main(arguments: list[str]) -> int:
    """Run one role until it is told to stop."""
    folder = StateFolder(Path(arguments[0]))
    spec = msgspec.json.decode(arguments[1].encode(), type=RoleSpec)
    config = load_config(folder.root)
    configure_logs(spec.name, folder.log(spec.name), config.log_level)
    log = get_logger("process")
    raise_descriptor_limit()
    try:
        asyncio.run(_run(folder, spec))
    except ConfigError as error:
        log.error("role cannot start", error=str(error))  # noqa: TRY400 - a message for the operator, not a trace
        sys.stderr.write(f"{error}\n")
        return os.EX_USAGE
    except DeaiosError as error:
        log.exception("role failed")
        sys.stderr.write(f"{error}\n")
        return exit_code(error)
    except sqlite3.Error as error:
        log.exception("journal failed")
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return exit_code(Unavailable()) if is_world_fault(error) else EXIT_UNEXPECTED
    except Exception as error:  # the outermost edge of the process
        log.exception("role crashed")
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return EXIT_UNEXPECTED
    return 0


async def _run(folder: StateFolder, spec: RoleSpec) -> None:
    clock, dice = SystemClock(), SystemDice()
    keystore = Keystore(folder.keys, dice, os.environ.get("DEAIOS_PASSWORD"))
    context = RoleContext(spec, folder, load_config(folder.root), keystore, clock, dice, Metrics(spec.name))
    context.report_starting()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, context.stopping.set)
    parent = asyncio.create_task(_watch_parent(context.stopping), name="watch parent")
    run = cast("RunRole", importlib.import_module(module_of(spec.kind)).run)  # every role module has one
    try:
        await run(context)
    finally:
        parent.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await parent


async def _watch_parent(stopping: asyncio.Event) -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        while await reader.read(1024):
            pass
        stopping.set()
    finally:
        transport.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

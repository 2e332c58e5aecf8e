"""The `deaios` program. Commands are imported only when they are called, so that `--help` is quick."""

import importlib
from typing import Any

import click

from deaios import __version__

_COMMANDS = {
    "up": "deaios.cli.network",
    "down": "deaios.cli.network",
    "join": "deaios.cli.network",
    "status": "deaios.cli.network",
    "chain": "deaios.cli.chain",
    "network": "deaios.cli.networks",
    "ask": "deaios.cli.answers",
    "embed": "deaios.cli.answers",
    "verify": "deaios.cli.answers",
    "put": "deaios.cli.files",
    "get": "deaios.cli.files",
    "blob": "deaios.cli.blob",
    "wallet": "deaios.cli.wallet",
    "key": "deaios.cli.key",
    "provide": "deaios.cli.roles",
    "calibrate": "deaios.cli.models",
    "models": "deaios.cli.models",
    "earnings": "deaios.cli.models",
    "store": "deaios.cli.roles",
    "audit": "deaios.cli.roles",
    "attest": "deaios.cli.attest",
    "validate": "deaios.cli.roles",
    "relay": "deaios.cli.roles",
    "connect": "deaios.cli.guide",
    "doctor": "deaios.cli.guide",
    "demo": "deaios.cli.demo",
}
_GROUPS = (
    ("Run a network", ("up", "down", "join", "status", "chain", "network", "demo")),
    ("Ask and check", ("ask", "embed", "verify")),
    ("Earn", ("provide", "calibrate", "models", "earnings", "store", "attest", "audit", "validate", "relay")),
    ("Files and money", ("put", "get", "blob", "wallet", "key")),
    ("Help", ("connect", "doctor")),
)
EXIT_USAGE = 64


class _Commands(click.Group):
    """Commands by name, in groups, imported on use; wrong usage ends with 64."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        module = _COMMANDS.get(cmd_name)
        return getattr(importlib.import_module(module), cmd_name) if module else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in _GROUPS:
            rows = [
                (name, command.get_short_help_str(90)) for name in names if (command := self.get_command(ctx, name))
            ]
            with formatter.section(title):
                formatter.write_dl(rows)

    def main(self, *args: Any, **kwargs: Any) -> Any:  # Any: as click declares it
        try:
            return super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.exceptions.Abort:
            raise SystemExit(130) from None
        except click.UsageError as error:
            error.show()
            raise SystemExit(EXIT_USAGE) from None
        except click.ClickException as error:
            error.show()
            raise SystemExit(error.exit_code) from None
        except click.exceptions.Exit as stop:
            raise SystemExit(stop.exit_code) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="deaios")
def main() -> None:
    """Open-model answers you can check.

    `deaios demo` shows everything in two minutes; `deaios up` runs a local network; `deaios ask` asks it and
    `deaios verify` checks the answer without trusting whoever gave it.
    """


if __name__ == "__main__":
    main()

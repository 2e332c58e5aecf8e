"""The program as a shell sees it: help, exit codes, JSON errors.

What follows from the arguments alone is asked of the program within this process; what it then does, and that it does
so in a bare environment, of a process of its own.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from deaios.cli.main import _COMMANDS, main

COMMANDS = sorted(_COMMANDS)


def run(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "deaios.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


class Said(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """The program's own entry, with arguments that end it before it does anything."""
    monkeypatch.setenv("NO_COLOR", "1")

    def run_here(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["deaios", *arguments])
        with pytest.raises(SystemExit) as ended:
            sys.exit(main())
        out, err = capsys.readouterr()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return Said(code or 0, out, err)

    return run_here


def test_help_names_every_command(tmp_path: Path) -> None:
    said = run("--help", home=tmp_path)
    assert said.returncode == 0
    words = said.stdout.split()
    assert all(name in words for name in COMMANDS)
    assert "\x1b" not in said.stdout


BLOB_COMMANDS = ("put", "get", "status", "sample", "prove", "verify", "challenge")
CHAIN_COMMANDS = ("follow", "export", "import", "check", "status")
KEY_COMMANDS = ("create", "list", "limit", "revoke")
NETWORK_COMMANDS = ("add", "list", "remove", "reclaim", "send")
GROUPS = {"blob": BLOB_COMMANDS, "chain": CHAIN_COMMANDS, "key": KEY_COMMANDS, "network": NETWORK_COMMANDS}
LEAVES: list[tuple[str, ...]] = [(name,) for name in COMMANDS if name not in GROUPS]
LEAVES += [(group, name) for group, names in GROUPS.items() for name in names]
LEAVES += [("attest", "verify")]  # a role and a group at once


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_names_its_commands(call: Callable[..., Said], group: str) -> None:
    said = call(group, "--help")
    assert said.returncode == 0
    assert all(f"  {name} " in said.stdout for name in GROUPS[group])


@pytest.mark.parametrize("names", LEAVES, ids=" ".join)
def test_every_command_has_help(call: Callable[..., Said], names: tuple[str, ...]) -> None:
    said = call(*names, "--help")
    assert said.returncode == 0
    assert "Usage: " in said.stdout
    assert "--dir" in said.stdout
    assert "--json" in said.stdout


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("verify",), ("verify", "x", "--bogus"), ("connect", "mars"), ("up", "--deployer", "key.json")],
)
def test_wrong_usage_is_64(call: Callable[..., Said], arguments: tuple[str, ...]) -> None:
    said = call(*arguments)
    assert said.returncode == 64
    assert said.stderr


def test_a_shell_sees_wrong_usage(tmp_path: Path) -> None:
    said = run("verify", "x", "--bogus", home=tmp_path)
    assert said.returncode == 64
    assert "--bogus" in said.stderr


@pytest.mark.parametrize(
    "arguments", [("wallet",), ("key", "list"), ("put", "/etc/hostname"), ("connect", "openai"), ("ask", "x")]
)
def test_a_folder_without_a_network_says_what_to_do(
    call: Callable[..., Said], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    said = call(*arguments, "--dir", str(tmp_path / "none"))
    assert said.returncode == 64, said.stderr
    assert "deaios up" in said.stderr
    assert "Traceback" not in said.stderr


def test_errors_are_json_for_scripts(tmp_path: Path) -> None:
    said = run("wallet", "--json", "--dir", str(tmp_path), home=tmp_path)
    assert json.loads(said.stdout)["error"]["type"] == "ConfigError"


def test_status_of_nothing_is_not_an_error(tmp_path: Path) -> None:
    said = run("status", "--json", "--dir", str(tmp_path), home=tmp_path)
    assert said.returncode == 0
    assert json.loads(said.stdout)["roles"] == []
    assert run("down", "--dir", str(tmp_path), home=tmp_path).returncode == 0


def test_verify_tells_forgery_from_inability(tmp_path: Path) -> None:
    broken = tmp_path / "a.json"
    broken.write_text("{}")
    said = run("verify", str(broken), "--json", "--dir", str(tmp_path), home=tmp_path)
    assert said.returncode == 1
    assert json.loads(said.stdout)["outcome"] == "violated"
    missing = run("verify", str(tmp_path / "none.json"), "--dir", str(tmp_path), home=tmp_path)
    assert missing.returncode == 2
    assert "cannot read" in missing.stdout + missing.stderr


def test_doctor_speaks_of_what_is_needed(tmp_path: Path) -> None:
    found = json.loads(run("doctor", "--json", "--dir", str(tmp_path), home=tmp_path).stdout)
    assert {"Python", "embedded chain", "llama engine", "memory", "disk", "default model"} == {f["name"] for f in found}

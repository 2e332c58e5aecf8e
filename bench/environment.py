"""The peers' own Python environment, `bench/.venv`: versions pinned by hash, never mixed with the product's."""

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = HERE / ".venv"
REQUIREMENTS = HERE / "requirements.txt"
INSTALL_S = 300


class AbsentPeer(Exception):
    """Why a peer cannot be had on this machine."""


@functools.cache
def install(say: Callable[[str], None]) -> Path:
    """The folder of the environment's programs, made when it is missing or of other requirements.

    Raises:
        AbsentPeer: it cannot be made; the reason.
    """
    stamp, wanted = FOLDER / "installed.txt", REQUIREMENTS.read_text()
    programs = FOLDER / "bin"
    if stamp.exists() and stamp.read_text() == wanted:
        return programs
    say(f"making {FOLDER} (once)")
    uv = [sys.executable, "-m", "uv"]
    _run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(FOLDER)])
    packages = ["--require-hashes", "-r", str(REQUIREMENTS)]
    _run([*uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(programs / "python"), *packages])
    stamp.write_text(wanted)
    return programs


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AbsentPeer(f"{command[0]} -m uv: {error}") from error
    if done.returncode:
        raise AbsentPeer(f"the peers' environment cannot be made: {done.stderr.strip().splitlines()[-1][:300]}")

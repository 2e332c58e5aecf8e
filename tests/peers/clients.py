"""Client libraries that do not share the product's environment, in one of their own: the repository's `.cache/clients`.

Versions are pinned by hash in `clients.txt`; the environment is made once and again when they change.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parents[1] / ".cache" / "clients"
REQUIREMENTS = HERE / "clients.txt"
INSTALL_S = 240


class AbsentClients(Exception):
    """Why the environment cannot be made on this machine."""


@dataclass(frozen=True)
class Clients:
    python: Path

    def run(self, script: str, base_url: str, key: str, timeout_s: float = 240) -> dict[str, object]:
        """Run one of the scripts beside this file against a gateway; gives the JSON object that it prints."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(FOLDER),
            "GATEWAY": base_url,
            "KEY": key,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # nothing is fetched
            "LANGSMITH_TRACING": "false",
        }
        command = [self.python, HERE / script]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, env=environment)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        said: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return said


def install_clients() -> Clients:
    """The environment, made when it is missing or of other versions.

    Raises:
        AbsentClients: why not.
    """
    wanted, python = REQUIREMENTS.read_text(), FOLDER / "bin" / "python"
    stamp = FOLDER / "installed.txt"
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(FOLDER.parent / "clients.lock"):
        if not (stamp.exists() and stamp.read_text() == wanted):
            uv = [sys.executable, "-m", "uv"]
            _run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(FOLDER)])
            packages = ["--require-hashes", "-r", str(REQUIREMENTS)]
            _run([*uv, "pip", "install", "--quiet", "--python", str(python), *packages])
            stamp.write_text(wanted)
    return Clients(python)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AbsentClients(f"{command[0]} -m uv: {error}") from error
    if done.returncode:
        raise AbsentClients(f"uv failed: {done.stderr.strip()[-400:]}")

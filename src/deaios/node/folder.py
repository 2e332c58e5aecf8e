"""The state folder: one place for everything a network or a joined machine keeps.

deaios.toml      configuration (optional)
network.json     the signed descriptor of the network
chain.json       the foreign chain that the network lives on, where it has none of its own
roles.json       which roles run here, with their options
keys/            encrypted keystores and the folder's password
roles/NAME/      a role's own journal, rows, packs
run/NAME.json    a running role's process, URL and state
logs/NAME.log    structured logs
models/          model files, shared by the roles of this folder
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import platformdirs
import psutil
from filelock import FileLock, Timeout

from deaios.primitives.encoding import InvalidEncoding, decode_hex
from deaios.primitives.errors import ConfigError, Invalid, Refused
from deaios.runtime.disk import PRIVATE, write_atomic

if TYPE_CHECKING:
    from deaios.ledger.descriptor import NetworkDescriptor

RoleKind = Literal[
    "chain", "operator", "storage", "da", "provider", "auditor", "gateway", "further", "validator", "relayer"
]
RoleState = Literal["starting", "running", "restarting", "stopped", "failed"]


NETWORK = "network"
"""Name of the lock of a whole network."""
CLOCK_SLACK_MS = 5_000
"""Between the kernel's clock and ours."""


def module_of(kind: RoleKind) -> str:
    """The module that runs the roles of a kind."""
    return f"deaios.node.roles.{kind}"


class RefusedRunning(Refused):
    """Something already runs in this folder."""


class UpstreamSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A server that a provider sells the answers of; what is empty is found out when the role starts.

    Attributes:
        url: base URL of the server.
        model: the server's name for the model.
        key_file: file that holds the server's API key; the key itself is kept nowhere else.
        dialect: kind of server.
        level: what its answers shall promise, 0 to 2.
    """

    url: str
    model: str = ""
    key_file: str = ""
    dialect: str = ""
    level: int | None = None


class RoleSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A role to run here.

    Attributes:
        name: unique in the folder, such as `provider-1`; also names its key, log and data.
        kind: which role.
        port: preferred TCP port; 0 lets the system pick once, later starts keep it.
        weights: what a provider computes with: `f16` (honest), or `q8_0`, `q4_0` (a cheat, for demonstrations).
        upstream: the server that computes for a provider; None for an engine of its own.
        record: model record that is served or audited, 0x hex; empty for the network's default.
        input_price: what a provider asks, smallest units per million prompt tokens; None as configured.
        output_price: the same per million sampled tokens.
        input_price_max: where the price follows load, the most it asks; None as configured.
        output_price_max: the same per million sampled tokens.
        relay: URL of the relay that a provider is reached through; empty for what deaios.toml says.
    """

    name: str
    kind: RoleKind
    port: int = 0
    weights: Literal["f16", "q8_0", "q4_0"] = "f16"
    upstream: UpstreamSpec | None = None
    record: str = ""
    input_price: int | None = None
    output_price: int | None = None
    input_price_max: int | None = None
    output_price_max: int | None = None
    relay: str = ""

    def record_id(self, default: bytes) -> bytes:
        """The model record of this role.

        Raises:
            ConfigError: not a record id.
        """
        try:
            return decode_hex(self.record, 32) if self.record else default
        except InvalidEncoding as error:
            raise ConfigError(f"role {self.name}: record {self.record[:80]!r}: {error}") from error


class RunState(msgspec.Struct, frozen=True):
    """What `run/NAME.json` says; `reason` explains `failed`."""

    name: str
    kind: str
    pid: int
    state: RoleState
    url: str = ""
    reason: str = ""
    started_at_ms: int = 0

    @property
    def is_alive(self) -> bool:
        """Is that very process still there, and not another one with its number?"""
        return is_process_alive(self.pid, self.started_at_ms)


def is_process_alive(pid: int, started_by_ms: int | None = None) -> bool:
    """Does a process run, not merely wait to be reaped?

    Args:
        pid: its number.
        started_by_ms: when it was running already; a process made later is another one.
    """
    try:
        process = psutil.Process(pid) if pid > 0 else None
        if process is None or process.status() == psutil.STATUS_ZOMBIE:
            return False
        return started_by_ms is None or process.create_time() * 1000 <= started_by_ms + CLOCK_SLACK_MS
    except psutil.Error:
        return False


def default_folder() -> Path:
    """Where state lives unless `--dir` says otherwise."""
    return Path(os.environ.get("DEAIOS_DIR") or platformdirs.user_data_dir("deaios"))


def model_cache() -> Path:
    """Where the shipped model file is kept between networks."""
    return Path(platformdirs.user_cache_dir("deaios")) / "models"


class StateFolder:
    """Paths and small files of one state folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @property
    def keys(self) -> Path:
        """Keystores."""
        return self.root / "keys"

    @property
    def models(self) -> Path:
        """Model files shared by this folder's roles."""
        return self.root / "models"

    def role(self, name: str) -> Path:
        """A role's own data."""
        return self.root / "roles" / name

    def log(self, name: str) -> Path:
        """A role's log file."""
        return self.root / "logs" / f"{name}.log"

    def load_roles(self) -> tuple[RoleSpec, ...]:
        """Roles that run here, in start order; empty when none were chosen yet."""
        path = self.root / "roles.json"
        if not path.exists():
            return ()
        try:
            return tuple(msgspec.json.decode(path.read_bytes(), type=list[RoleSpec]))
        except (msgspec.DecodeError, UnicodeError) as error:
            raise ConfigError(f"{path}: {error}; delete it to choose roles again") from error

    def save_roles(self, roles: tuple[RoleSpec, ...]) -> None:
        """Remember which roles run here."""
        write_atomic(self.root / "roles.json", msgspec.json.format(msgspec.json.encode(roles)))

    @property
    def chain_path(self) -> Path:
        """Where the foreign chain of a network founded here is noted."""
        return self.root / "chain.json"

    @property
    def descriptor_path(self) -> Path:
        """The network's descriptor."""
        return self.root / "network.json"

    def load_descriptor(self) -> "NetworkDescriptor":
        """The network this folder belongs to.

        Raises:
            ConfigError: none yet, or damaged; says how to get one.
        """
        if not self.descriptor_path.exists():
            raise ConfigError(
                f"{self.root} belongs to no network; run `deaios up` to found one or `deaios join DESCRIPTOR`"
            )
        from deaios.ledger.descriptor import decode_descriptor  # noqa: PLC0415 - the supervisor never reads one

        try:
            return decode_descriptor(self.descriptor_path.read_bytes())
        except Invalid as error:
            raise ConfigError(f"{self.descriptor_path} is damaged: {error}; restore it, or join again") from error

    def save_descriptor(self, data: bytes) -> None:
        """Keep the descriptor's exact bytes."""
        write_atomic(self.descriptor_path, data)

    def load_run_state(self, name: str) -> RunState | None:
        """What is known of a role's process; None when it never ran."""
        try:
            return msgspec.json.decode((self.root / "run" / f"{name}.json").read_bytes(), type=RunState)
        except (FileNotFoundError, msgspec.DecodeError, UnicodeError):
            return None

    def save_run_state(self, state: RunState) -> None:
        """Publish a role's process, URL and state to other commands."""
        write_atomic(self.root / "run" / f"{state.name}.json", msgspec.json.encode(state))

    def load_secret_text(self, name: str) -> str | None:
        """A small secret kept for the user, such as the gateway's API key."""
        path = self.keys / f"{name}.secret"
        return path.read_text().strip() if path.exists() else None

    def save_secret_text(self, name: str, text: str) -> None:
        """Keep a small secret, mode 0600."""
        write_atomic(self.keys / f"{name}.secret", text.encode(), PRIVATE)

    @contextmanager
    def lock(self, name: str = NETWORK) -> Iterator[None]:
        """Hold the folder for a whole network, or for one role of it; roles may run beside each other.

        Args:
            name: `NETWORK`, or a role's name.

        Raises:
            RefusedRunning: it runs already, or a network and a single role would meet; names the process.
        """
        (self.root / "run").mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / "run" / f"{name}.lock")
        owner = self.root / "run" / f"{name}.pid"
        running = self.supervisors()
        held = next((other for other in running if other == name or NETWORK in (other, name)), None)
        if held is None:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                held = name
        if held is not None:
            raise RefusedRunning(
                f"{held} already runs in {self.root} (process {running.get(held) or 'unknown'}); "
                f"stop it with `deaios down --dir {self.root}`, or use another folder"
            )
        try:
            write_atomic(owner, str(os.getpid()).encode())
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()

    def supervisors(self) -> dict[str, int]:
        """Process ids of what runs here, by the name that its lock has; the locks decide, not the numbers."""
        found: dict[str, int] = {}
        for path in sorted((self.root / "run").glob("*.lock")):
            probe = FileLock(path)
            try:
                probe.acquire(timeout=0)
            except Timeout:
                try:
                    found[path.stem] = int(path.with_suffix(".pid").read_text())
                except (FileNotFoundError, ValueError):
                    found[path.stem] = 0
            else:
                probe.release()
        return found


def pretty_json(value: object) -> str:
    """JSON for people and scripts alike."""
    return json.dumps(msgspec.to_builtins(value), indent=2, ensure_ascii=False)

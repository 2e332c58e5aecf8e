"""`deaios.toml`: what an operator may set. Unknown keys are refused with the nearest known one."""

import difflib
import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from deaios.primitives.errors import ConfigError
from deaios.primitives.units import CREDIT

CONFIG_NAME = "deaios.toml"


class ChainConfig(msgspec.Struct, frozen=True):
    """The embedded chain, and what is paid for gas on any."""

    port: int = 8545
    """Preferred JSON-RPC port; another is picked when it is taken."""
    block_interval_ms: int = 500
    sealing: Literal["paced", "instant", "interval"] = "paced"
    """When blocks are made: some moments after a transaction arrives, at once, or at each interval."""
    keep_blocks: int = 0
    """Transactions and logs of so many newest blocks are kept; 0 keeps all. Never fewer than unbonding may need."""
    state_slots_max: int = 10_000_000
    """Storage words at which no more transactions are admitted; each takes some 380 bytes of memory."""
    time_travel: bool = False
    """For developers of contracts: anybody who reaches the chain may move its time and make blocks (dev_*). The other
    roles keep the machine's time and fail once the two are far apart."""
    fee_max_gwei: int = 1000
    """Most that this side pays for a unit of gas."""
    tip_max_gwei: int = 100
    """What of it may go to who orders the blocks."""
    gas_budget_gwei: int = 5_000_000_000
    """Most gas money that the operator of a network on a foreign chain hands to its own roles in one run."""


class GatewayConfig(msgspec.Struct, frozen=True):
    """The OpenAI door."""

    host: str = "127.0.0.1"
    port: int = 8000
    relay: bool = True
    """Whether roles that nobody can dial may be reached through it; it passes on what it need not understand."""
    markup_bps: int = 0
    """Added to what providers ask where a request pays by x402, in hundredths of a per cent."""
    claim_interval_s: int = 30
    """Between claims of what x402 channels owe this gateway; each costs gas."""


class NetworkConfig(msgspec.Struct, frozen=True):
    """How many roles a founded network runs."""

    storage_nodes: int = 3
    da_nodes: int = 3
    """Members of the data availability committee. How many seats they share is fixed when the network is founded."""
    providers: int = 2
    auditors: int = 4
    audit_interval_s: int = 20
    """Mean pause between one auditor's purchases."""
    host: str = "127.0.0.1"
    """Address on which the roles here listen and under which they are registered; gateways have one of their own."""
    faucet: Literal["open", "own"] = "open"
    """Whether the faucet gives to everybody who asks, or to the keys of this folder only."""
    audit_model_bytes_max: int = 2_000_000_000
    """Largest model file that an auditor here fetches and loads beside the default one; 0 audits the default only."""


class ProviderConfig(msgspec.Struct, frozen=True):
    """What a provider here asks for; a gateway expects its providers to ask no more."""

    input_price: int = 1_000_000
    """Smallest units of credit per million prompt tokens."""
    output_price: int = 4_000_000
    """The same per million sampled tokens."""
    input_price_max: int = 0
    """Above `input_price`: the price follows load between the two; 0 keeps it fixed."""
    output_price_max: int = 0
    """The same per million sampled tokens."""
    claim_interval_s: int = 30
    """Between claims of what was earned; each costs gas."""
    relay: str = ""
    """A relay's URL; empty to use one where nobody can dial this machine; `direct` for never."""


class SponsorConfig(msgspec.Struct, frozen=True):
    """Whether the operator lends newcomers their first stake, and how much (docs/relay.md)."""

    enabled: bool = False
    """Said in the descriptor when the network is founded."""
    budget: int = 1_000 * CREDIT
    """Smallest units of credit lent in one run at most, backing included."""
    working: int = CREDIT // 2
    """Lent beside the stake, to pay for publishing the first receipts."""
    fee: int = CREDIT // 10
    """Owed beyond what is given: what gas and trouble are worth."""
    term_s: int = 30 * 86_400
    """Before it, the backing is not taken back."""
    hourly_max: int = 20
    """Newcomers within an hour."""


class BuyerConfig(msgspec.Struct, frozen=True):
    """How long a gateway or auditor here waits for a provider before it turns to another, or gives up."""

    first_token_s: int = 60
    silence_s: int = 60
    """Within an answer that has begun; a broken one is taken up again three times at most."""


class EngineConfig(msgspec.Struct, frozen=True):
    """How models are run here."""

    kind: Literal["llama", "numpy", "transformers"] = "llama"
    """`llama` (llama.cpp), `numpy` (the referee, runs everywhere) or `transformers` (an extra)."""
    threads: int = 0
    """0 shares the cores among the engines of this folder."""
    context_tokens: int = 2048
    sequences_max: int = 0
    """Answers made at once, 64 at most; 0 takes 8 a thread, fewer where memory holds no whole context for each."""
    tokens_max: int = 0
    """Most tokens that all sequences hold together: the cache's memory, about 23 kB a token of the default model. 0
    takes an eighth of the machine's memory, and far less where many engines share it. Less than `sequences_max`
    contexts is one pool for all answers, which costs time (docs/benchmarks.md)."""
    prefix_cache_mib: int = 64
    """Memory for beginnings of prompts that were read before, kept per payer; 0 keeps none."""


class SupervisorConfig(msgspec.Struct, frozen=True):
    """When a role that keeps ending by its own fault is given up."""

    restarts_max: int = 5
    """Restarts within the window; one more, and the role has failed for good."""
    restart_window_s: int = 120


class Config(msgspec.Struct, frozen=True):
    """The whole file; every key has a default."""

    chain: ChainConfig = ChainConfig()
    gateway: GatewayConfig = GatewayConfig()
    network: NetworkConfig = NetworkConfig()
    provider: ProviderConfig = ProviderConfig()
    buyer: BuyerConfig = BuyerConfig()
    engine: EngineConfig = EngineConfig()
    supervisor: SupervisorConfig = SupervisorConfig()
    sponsor: SponsorConfig = SponsorConfig()
    log_level: str = "info"


def load_config(root: Path) -> Config:
    """Read `deaios.toml` in a state folder; a missing file means all defaults.

    Raises:
        ConfigError: names the key and the fix.
    """
    path = root / CONFIG_NAME
    if not path.exists():
        return Config()
    try:
        raw = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    _refuse_unknown(path, raw, Config, "")
    try:
        return msgspec.convert(raw, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error


def _refuse_unknown(path: Path, raw: dict[str, Any], kind: type, prefix: str) -> None:  # Any: parsed TOML
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in raw.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1, cutoff=0.3)
            hint = f"; did you mean `{prefix}{near[0]}`?" if near else f"; known keys: {', '.join(sorted(fields))}"
            raise ConfigError(f"{path}: unknown key `{prefix}{key}`{hint}")
        inner = fields[key]
        if isinstance(value, dict) and isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            _refuse_unknown(path, value, inner, f"{prefix}{key}.")

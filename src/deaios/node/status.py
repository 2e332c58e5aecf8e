"""What runs in a folder, as files and the roles themselves tell it."""

import msgspec

from deaios.node.folder import StateFolder
from deaios.primitives.errors import ConfigError, Invalid, Unavailable
from deaios.runtime.client import HttpClient

PROBE_S = 3.0
API_KEY_NAME = "gateway-api-key"


class RoleStatus(msgspec.Struct, frozen=True):
    """One role."""

    name: str
    kind: str
    pid: int
    url: str
    state: str
    reason: str = ""


class ChainStatus(msgspec.Struct, frozen=True):
    """The chain; height is None when it cannot be reached."""

    url: str = ""
    height: int | None = None
    chain_id: int | None = None


class GatewayStatus(msgspec.Struct, frozen=True):
    """The OpenAI door."""

    url: str = ""
    api_key: str = ""


class Status(msgspec.Struct, frozen=True):
    """Everything `deaios status` shows."""

    dir: str
    network: str
    chain: ChainStatus
    gateway: GatewayStatus
    roles: list[RoleStatus]


class _Number(msgspec.Struct):
    result: str


async def read_status(folder: StateFolder) -> Status:
    """Look at run files, processes and the chain."""
    roles = []
    for spec in folder.load_roles():
        state = folder.load_run_state(spec.name)
        if state is None:
            continue
        alive = state.is_alive
        shown = state.state if alive or state.state in ("failed", "stopped", "restarting") else "stopped"
        roles.append(RoleStatus(spec.name, spec.kind, state.pid if alive else 0, state.url, shown, state.reason))
    by_name = {role.name: role for role in roles}
    try:
        descriptor = folder.load_descriptor()
    except ConfigError:
        descriptor = None
    chain_url = by_name["chain"].url if "chain" in by_name else descriptor.rpc_urls[0] if descriptor else ""
    gateway_url = (
        by_name["gateway"].url if "gateway" in by_name else next(iter(descriptor.gateways), "") if descriptor else ""
    )
    return Status(
        dir=str(folder.root),
        network="0x" + descriptor.network_id.hex() if descriptor else "",
        chain=ChainStatus(chain_url, await _fetch_height(chain_url), descriptor.chain_id if descriptor else None),
        gateway=GatewayStatus(gateway_url, folder.load_secret_text(API_KEY_NAME) or ""),
        roles=roles,
    )


async def _fetch_height(url: str) -> int | None:
    if not url:
        return None
    question = {"jsonrpc": "2.0", "id": 1, "method": "eth_blockNumber", "params": []}
    try:
        async with HttpClient(total_s=PROBE_S) as http:
            return int((await http.post_json(url, question, _Number)).result, 16)
    except (Unavailable, Invalid, ValueError):
        return None


async def read_connection(folder: StateFolder, what: str) -> dict[str, str]:
    """What to export for OpenAI clients, or to paste into a wallet.

    Raises:
        ConfigError: nothing to connect to; says what to start.
    """
    found = await read_status(folder)
    if what == "openai":
        if not found.gateway.url or not found.gateway.api_key:
            raise ConfigError(f"no gateway in {folder.root}; start one with `deaios up`")
        return {"OPENAI_BASE_URL": f"{found.gateway.url}/v1", "OPENAI_API_KEY": found.gateway.api_key}
    if not found.chain.url:
        raise ConfigError(f"no chain in {folder.root}; run `deaios up` or `deaios join DESCRIPTOR`")
    descriptor = folder.load_descriptor()
    return {
        "Network name": "DeAIOS local",
        "RPC URL": found.chain.url,
        "Chain ID": str(descriptor.chain_id),
        "Currency symbol": "ETH",
        "Credit token": "0x" + descriptor.token.address.hex(),
    }

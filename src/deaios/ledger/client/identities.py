"""Client of `IdentityRegistry` (ERC-8004): who plays a role, and at which URL."""

from collections.abc import Mapping
from dataclasses import dataclass

from deaios.ledger.client.bound import BoundContract, Outcome
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.ledger.records import TransactionReceipt
from deaios.primitives.keys import Address

ROLE_KEY = "role"
AGENTS_MAX = 10_000
"""Most agents listed in one call of `list_agents`."""


@dataclass(frozen=True, slots=True)
class Agent:
    """A registered role; the URL is the owner's claim and hostile until it is checked."""

    agent_id: int
    owner: Address
    url: str


class IdentityRegistry:
    """The registry of agents; ids start at 1."""

    def __init__(self, rpc: Rpc, address: Address) -> None:
        self.contract = BoundContract(rpc, "IdentityRegistry", address)
        self.address = address

    async def agent_count(self) -> int:
        """How many agents exist."""
        return int(await self.contract.read_one("agentCount"))

    async def agent_at(self, index: int) -> Agent:
        """An agent by position, from 0."""
        agent_id, owner, url = await self.contract.read("agentAt", index)
        return Agent(agent_id, owner, url)

    async def agent_of(self, owner: Address) -> int:
        """The id an account registered last; 0 for none."""
        return int(await self.contract.read_one("agentOf", owner))

    async def owner_of(self, agent_id: int) -> Address:
        """Who owns an agent."""
        return Address(await self.contract.read_one("ownerOf", agent_id))

    async def token_uri(self, agent_id: int) -> str:
        """An agent's URL."""
        return str(await self.contract.read_one("tokenURI", agent_id))

    async def get_metadata(self, agent_id: int, key: str) -> bytes:
        """A metadata value; empty for an unknown key."""
        return bytes(await self.contract.read_one("getMetadata", agent_id, key))

    async def get_role(self, agent_id: int) -> str:
        """The role an agent claims: provider, auditor, storage, gateway; empty when it claims none."""
        return (await self.get_metadata(agent_id, ROLE_KEY)).decode(errors="replace")

    async def list_agents(self, limit: int = AGENTS_MAX) -> tuple[Agent, ...]:
        """All agents, newest first, at most `limit`."""
        count = await self.agent_count()
        indexes = reversed(range(max(count - limit, 0), count))
        answers = await self.contract.read_many([("agentAt", (index,)) for index in indexes])
        return tuple(Agent(*answer) for answer in answers)

    async def list_role(self, role: str, limit: int = AGENTS_MAX) -> tuple[Agent, ...]:
        """All agents that claim a role, newest first, out of the newest `limit` agents."""
        agents = await self.list_agents(limit)
        claims = await self.contract.read_many([("getMetadata", (agent.agent_id, ROLE_KEY)) for agent in agents])
        wanted = role.encode()
        return tuple(agent for agent, (claim,) in zip(agents, claims, strict=True) if claim == wanted)

    async def register(self, sender: Sender, url: str, metadata: Mapping[str, bytes] | None = None) -> Outcome[int]:
        """Register the sender under a URL; gives the agent's id."""
        entries = tuple((metadata or {}).items())
        receipt = await self.contract.send(sender, "register(string,(string,bytes)[])", url, entries)
        return Outcome(self.contract.find_event(receipt, "Registered").values["agentId"], receipt)

    async def set_url(self, sender: Sender, agent_id: int, url: str) -> TransactionReceipt:
        """Change an own agent's URL."""
        return await self.contract.send(sender, "setAgentURI", agent_id, url)

    async def set_metadata(self, sender: Sender, agent_id: int, key: str, value: bytes) -> TransactionReceipt:
        """Change an own agent's metadata."""
        return await self.contract.send(sender, "setMetadata", agent_id, key, value)

    async def ensure_registered(self, sender: Sender, url: str, role: str) -> Agent:
        """Register the sender in a role, or bring its registration up to date; safe to repeat."""
        agent_id = await self.agent_of(sender.address)
        if agent_id == 0:
            outcome = await self.register(sender, url, {ROLE_KEY: role.encode()})
            return Agent(outcome.value, sender.address, url)
        if await self.token_uri(agent_id) != url:
            await self.set_url(sender, agent_id, url)
        if await self.get_role(agent_id) != role:
            await self.set_metadata(sender, agent_id, ROLE_KEY, role.encode())
        return Agent(agent_id, sender.address, url)

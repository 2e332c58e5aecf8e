"""A relayer between the networks of a descriptor: pays gas on each, and is trusted by nobody."""

from collections.abc import Sequence
from contextlib import AsyncExitStack

from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.widening import FurtherContracts
from deaios.ledger.descriptor import NetworkDescriptor
from deaios.ledger.service.relayer import EpochRules, Relayer, Side
from deaios.ledger.valset import build_root_id
from deaios.node.context import RoleContext
from deaios.node.further import ROLE, domain_of, ensure_gas, open_sender, open_views, work_per_descriptor
from deaios.node.member import open_member
from deaios.primitives.errors import Invalid, Refused, Unavailable
from deaios.runtime.logs import get_logger

VALIDATORS_REFRESH_S = 10.0


async def run(context: RoleContext) -> None:
    """Carry epochs and messages until told to stop."""
    await work_per_descriptor(context, lambda descriptor: _work(context, descriptor))


async def _work(context: RoleContext, descriptor: NetworkDescriptor) -> None:
    key = context.open_key()
    async with AsyncExitStack() as stack:
        member = await stack.enter_async_context(open_member(descriptor, key))
        views = await stack.enter_async_context(open_views(descriptor, keeps_messages=True))
        await member.ensure_funded(0)
        root_id = build_root_id(descriptor.chain_id)
        root = Side(root_id, views.outboxes[root_id], member.contracts.inbox, member.sender)
        further = []
        for network in descriptor.networks:
            view = views.outboxes[network.id]
            rpc = view.outbox.contract.rpc
            try:
                await ensure_gas(member.http, network, rpc, key)
            except (Unavailable, Refused, Invalid) as error:
                get_logger("relayer").warning("no gas", network=network.name, error=str(error))
            contracts = FurtherContracts(rpc, network.contracts)
            sender = await stack.enter_async_context(open_sender(rpc, key, network.chain_id))
            further.append(Side(network.id, view, contracts.inbox, sender, contracts.mirror))
        relayer = Relayer(
            root=root,
            further=further,
            registry=views.registry,
            epochs=views.epochs,
            rules=EpochRules(descriptor.windows.network_epoch_s, descriptor.windows.network_trust_s),
            domain=domain_of(descriptor),
            http=member.http,
            find_validators=_Validators(context, member.contracts).find,
            clock=context.clock,
        )
        context.report_ready("")
        await context.work_until_stopped(relayer.run())


class _Validators:
    """Where validators listen, as the registry of agents says; asked again from time to time."""

    def __init__(self, context: RoleContext, contracts: Contracts) -> None:
        self._clock = context.clock
        self._contracts = contracts
        self._urls: tuple[str, ...] = ()
        self._asked_s: float | None = None

    async def find(self) -> Sequence[str]:
        """Their URLs."""
        now = self._clock.monotonic_s()
        if self._asked_s is None or now - self._asked_s > VALIDATORS_REFRESH_S:
            self._urls = tuple(agent.url for agent in await self._contracts.identities.list_role(ROLE))
            self._asked_s = now
        return self._urls

"""A member of the data availability committee: rows on disk behind HTTP, attestations, and duties on chain."""

import asyncio

from deaios.da.client.blobs import BlobClient
from deaios.da.client.healing import Healer
from deaios.da.service.door import MemberDoor, build_member_application
from deaios.da.service.duties import Duties, DutySettings
from deaios.da.store import PledgeStore
from deaios.ledger.structs import availability_domain
from deaios.ledger.suite import DATA_AVAILABILITY
from deaios.node.context import RoleContext
from deaios.node.member import Member, build_fees, open_member
from deaios.node.ports import keep_port
from deaios.rows.store import RowStore
from deaios.runtime.http import serve

QUOTA_BYTES = 20 << 30
WAITING_BYTES = QUOTA_BYTES // 4
"""Of it, what rows may take that nobody has paid for yet."""


async def run(context: RoleContext) -> None:
    """Stake, register, take rows and keep promises until told to stop."""
    descriptor = context.folder.load_descriptor()
    async with open_member(descriptor, context.open_key(), fees=build_fees(context.config.chain)) as member:
        await _join(member)
        store = RowStore(context.data / "rows", QUOTA_BYTES)
        pledges = PledgeStore(context.data / "pledges.db")
        try:
            await _serve(context, member, store, pledges)
        finally:
            pledges.close()
            store.close()


async def _join(member: Member) -> None:
    stake = member.descriptor.windows.da_stake_min
    await member.ensure_funded(stake)
    await member.ensure_staked(DATA_AVAILABILITY, stake)


async def _serve(context: RoleContext, member: Member, store: RowStore, pledges: PledgeStore) -> None:
    descriptor = member.descriptor
    windows = descriptor.windows
    door = MemberDoor(
        member.key,
        availability_domain(descriptor.chain_id, descriptor.contracts.availability),
        store,
        pledges,
        network_id=descriptor.network_id,
        clock=context.clock,
        waiting_bytes_max=WAITING_BYTES,
    )
    reader = BlobClient(
        member.contracts,
        member.http,
        descriptor.network_id,
        descriptor.chain_id,
        clock=context.clock,
        dice=context.dice,
    ).reader
    duties = Duties(
        contracts=member.contracts,
        sender=member.sender,
        door=door,
        store=store,
        pledges=pledges,
        healer=Healer(reader),
        settings=DutySettings(windows.da_epoch_s, windows.da_term_max_s, windows.da_challenge_s_max),
        clock=context.clock,
    )
    application = build_member_application(door, store, pledges)
    async with serve(application, context.host, keep_port(context.data, context.spec.port, context.host)) as url:
        await asyncio.gather(
            member.contracts.identities.ensure_registered(member.sender, url, "da"), duties.tend_epoch()
        )
        context.report_ready(url)
        await context.work_until_stopped(duties.run())

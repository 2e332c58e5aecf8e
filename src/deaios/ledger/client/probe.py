"""What a chain is like, found out before anything is sent to it: fees, opcodes, blocks, logs, finality.

A chain that cannot carry a network is refused with the rule that it breaks. Sends nothing.
"""

from dataclasses import dataclass

from deaios.ledger.artifacts import NAMES, load_artifact
from deaios.ledger.client.rpc import RefusedByChain, Reverted, Rpc, UnavailableChain
from deaios.ledger.records import Block
from deaios.primitives.errors import Invalid, Refused
from deaios.primitives.keys import ZERO_ADDRESS

CANCUN_PROGRAM = bytes.fromhex("60015f5d5f5c5f5260205f60205e60206020f3")
"""Creation code in words: TSTORE 1 under 0, TLOAD it, MSTORE it at 0, MCOPY it to 32, return it from there; zeros are
PUSH0's."""
CANCUN_ANSWER = (1).to_bytes(32)
BLOCK_TIME_SPAN = 64
"""Blocks over which the time between two is averaged."""
LOGS_SPAN = 1000
"""Blocks asked for at once, to learn how many this node serves."""
GAS_PER_CREATION_BYTE = 300
"""What deploying costs at least and a little more: 200 for each byte kept, call data and the constructor."""


class InvalidChain(Invalid):
    """A chain, or a node, that cannot carry a network."""


@dataclass(frozen=True, slots=True)
class ChainTraits:
    """What was found.

    Attributes:
        base_fee: of the latest block, in wei.
        block_s: seconds between blocks, on the average of the last ones; 0 where only one can be seen.
        finalized: height that the node calls finalized; None where it does not say.
        settled: height of the newest settled block.
    """

    chain_id: int
    height: int
    settled: int
    base_fee: int
    gas_limit: int
    block_s: float
    finalized: int | None


async def probe_chain(rpc: Rpc) -> ChainTraits:
    """Find out what a chain is like.

    Raises:
        InvalidChain: it lacks something that a network needs; says what.
        UnavailableChain: it cannot be asked.
    """
    chain_id = await rpc.chain_id()
    latest = await rpc.fetch_latest()
    if latest.base_fee is None:
        raise InvalidChain(f"{rpc.url}: block {latest.number} has no base fee; a network needs EIP-1559 (London)")
    await _validate_opcodes(rpc)
    needed = GAS_PER_CREATION_BYTE * max(len(load_artifact(name).creation) for name in NAMES)
    if latest.gas_limit < needed:
        raise InvalidChain(f"{rpc.url}: a block holds {latest.gas_limit} gas, the largest contract needs {needed}")
    settled = await _find_settled(rpc)
    await _validate_logs(rpc, latest)
    return ChainTraits(
        chain_id=chain_id,
        height=latest.number,
        settled=settled,
        base_fee=latest.base_fee,
        gas_limit=latest.gas_limit,
        block_s=await _measure_block_time(rpc, latest),
        finalized=await _find_finalized(rpc),
    )


async def _validate_opcodes(rpc: Rpc) -> None:
    try:
        answer = await rpc.eth_call(None, CANCUN_PROGRAM)
    except (RefusedByChain, Reverted, UnavailableChain) as error:
        await rpc.block_number()  # some nodes call an unknown opcode an internal error; one that is away fails here
        raise InvalidChain(
            f"{rpc.url}: the chain does not run PUSH0, TSTORE and MCOPY, which the contracts use; a network needs the "
            f"rules of Cancun ({error})"
        ) from error
    if answer != CANCUN_ANSWER:
        raise InvalidChain(f"{rpc.url}: PUSH0, TSTORE and MCOPY give 0x{answer.hex()}, not 1")


async def _find_settled(rpc: Rpc) -> int:
    """Height of the newest settled block; its state must still be there, because roles act on it."""
    settled = await rpc.settled.fetch_latest()
    try:
        await rpc.settled.get_balance(ZERO_ADDRESS)
        await rpc.settled.eth_call(ZERO_ADDRESS, b"")
    except Refused as error:
        raise InvalidChain(
            f"{rpc.url}: the state of block {settled.number} cannot be read, {rpc.confirmations} confirmations are "
            f"wanted; ask for fewer, or use a node that keeps older states ({error})"
        ) from error
    return settled.number


async def _validate_logs(rpc: Rpc, latest: Block) -> None:
    """Ask for logs once; a node that serves few blocks at once is remembered by the client."""
    try:
        await rpc.get_logs(ZERO_ADDRESS, from_block=max(0, latest.number - LOGS_SPAN), to_block=latest.number)
    except Refused as error:
        raise InvalidChain(f"{rpc.url}: eth_getLogs is refused, and roles live by events ({error})") from error


async def _measure_block_time(rpc: Rpc, latest: Block) -> float:
    span = min(BLOCK_TIME_SPAN, latest.number)
    earlier = await rpc.get_block(latest.number - span) if span else None
    return 0.0 if earlier is None else (latest.timestamp - earlier.timestamp) / span


async def _find_finalized(rpc: Rpc) -> int | None:
    try:
        block = await rpc.get_block("finalized")
    except (Refused, Invalid):  # not every chain has finality, nor every node a word for it
        return None
    return None if block is None else block.number

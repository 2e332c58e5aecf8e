"""Until when a chain must make blocks even where nobody sends anything: some contract is counting down.

A chain that only makes blocks when there is work asks this after each block with a transaction.
"""

from deaios.ledger.client.bound import BoundContract
from deaios.ledger.client.contracts import Contracts


async def fetch_deadline(contracts: Contracts) -> int:
    """Latest deadline that is open in any contract, Unix seconds; 0 for none. One exchange with the node."""
    watched: tuple[BoundContract, ...] = (
        contracts.beacon.contract,
        contracts.disputes.contract,
        contracts.forks.contract,
        contracts.availability.contract,
    )
    functions = [contract.abi.get_function("deadline") for contract in watched]
    answers = await contracts.rpc.eth_calls(
        [(contract.address, function.encode_call(())) for contract, function in zip(watched, functions, strict=True)]
    )
    return max(int(function.decode_result(answer)[0]) for function, answer in zip(functions, answers, strict=True))

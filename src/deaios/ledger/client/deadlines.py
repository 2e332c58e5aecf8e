"""Until when a chain must make blocks even where nobody sends anything: some contract is counting down.

A chain that only makes blocks when there is work asks this after each block with a transaction.
"""

from deaios.ledger.client.bound import BoundContract
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.rpc import encode_call_object
from deaios.ledger.records import read_data


async def fetch_deadline(contracts: Contracts) -> int:
    """Latest deadline that is open in any contract, Unix seconds; 0 for none. One exchange with the node."""
    watched: tuple[BoundContract, ...] = (
        contracts.beacon.contract,
        contracts.disputes.contract,
        contracts.forks.contract,
    )
    functions = [contract.abi.get_function("deadline") for contract in watched]
    answers = await contracts.rpc.batch(
        [
            ("eth_call", [encode_call_object(contract.address, function.encode_call(()), None, 0), "latest"])
            for contract, function in zip(watched, functions, strict=True)
        ]
    )
    return max(
        int(function.decode_result(read_data(answer, "deadline"))[0])
        for function, answer in zip(functions, answers, strict=True)
    )

"""Deploys the contracts of a network, and checks that a chain holds them.

Deployment is resumable: addresses follow from the nonces of whoever creates, so the chain itself says how far it came,
and a second run goes on from there. With a salt, and where the chain carries the deterministic deployment proxy, an
owner's workshop creates (`ledger.suite`): addresses then depend on owner and salt alone. Otherwise the deployer's key
does, and must send nothing else until the last contract stands.
"""

from collections.abc import Callable, Sequence

from deaios.ledger.abi import Value
from deaios.ledger.artifacts import load_artifact
from deaios.ledger.client.rpc import Rpc, UnavailableChain
from deaios.ledger.client.sender import Sender
from deaios.ledger.records import InvalidAnswer
from deaios.ledger.settings import NetworkSettings
from deaios.ledger.suite import (
    CONTRACT_OF_FIELD,
    CREATE2_PROXY,
    CREATE2_PROXY_CODE,
    WORKSHOP_FIRST_NONCE,
    Step,
    SuiteAddresses,
    SuitePlan,
    build_arguments,
    build_workshop,
    compute_workshop_address,
    plan_suite,
)
from deaios.ledger.valset import build_root_id
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import ConfigError, Invalid
from deaios.primitives.keys import Address

Progress = Callable[[str, Address], None]
"""Told the name and address of each contract that stands."""

SETTLE_S = 900.0
"""How long the contracts may take until no reorganisation takes them back; the chain has stopped after this."""
SETTLE_POLL_S = 0.5

UNREADABLE = frozenset({("Credit", "holder"), ("Credit", "supply"), ("Bridge", "hubBridge")})
"""Constructor parameters that cannot be read back: the supply may be burned and spread since; the hub has no hub."""


class InvalidDeployment(Invalid):
    """What is at an address is not the contract it should be."""


async def deploy_suite(
    sender: Sender,
    rpc: Rpc,
    settings: NetworkSettings,
    *,
    holder: Address | None = None,
    first_nonce: int = 0,
    progress: Progress | None = None,
) -> SuiteAddresses:
    """Deploy what is missing of a network's contracts; safe to repeat with the same arguments.

    Args:
        sender: the deployer; its key sends nothing else meanwhile.
        rpc: the chain.
        settings: windows and amounts.
        holder: who gets the supply of Credit, the deployer by default.
        first_nonce: the deployer's nonce when deployment first began; 0 for a key made for it.
        progress: told each contract that stands.

    Raises:
        ConfigError: the deployer's nonce does not fit the plan, so its addresses cannot be had any more.
        InvalidDeployment: another contract is at a planned address.
    """
    plan = plan_suite(sender.address, first_nonce, settings, holder or sender.address)
    await _wait_quiet(sender, rpc)
    return await _carry_out(sender, rpc, plan, settings, progress)


async def has_create2_proxy(rpc: Rpc) -> bool:
    """Does the chain carry the deterministic deployment proxy?"""
    return await rpc.get_code(CREATE2_PROXY) == CREATE2_PROXY_CODE


async def deploy_suite_by_workshop(
    sender: Sender, rpc: Rpc, settings: NetworkSettings, salt: bytes, *, progress: Progress | None = None
) -> SuiteAddresses:
    """Deploy what is missing of a network's contracts at addresses that owner and salt name; safe to repeat.

    Args:
        sender: the owner, who gets the supply of Credit; its key may send other things meanwhile.
        rpc: the chain, which carries the proxy.
        settings: windows and amounts.
        salt: 32 bytes; another salt is another network of this owner.
        progress: told each contract that stands.

    Raises:
        InvalidDeployment: another contract is at a planned address: most likely other settings under this salt.
    """
    workshop = compute_workshop_address(sender.address, salt)
    creation, runtime = build_workshop(sender.address)
    if not await rpc.get_code(workshop):
        await sender.send(CREATE2_PROXY, salt + creation, confirmations=1)
    if await rpc.get_code(workshop) != runtime:
        raise InvalidDeployment(
            f"the code at {encode_hex(workshop)} is not the workshop of {encode_hex(sender.address)}"
        )
    plan = plan_suite(workshop, WORKSHOP_FIRST_NONCE, settings, sender.address)
    return await _carry_out(sender, rpc, plan, settings, progress)


async def _carry_out(
    sender: Sender, rpc: Rpc, plan: SuitePlan, settings: NetworkSettings, progress: Progress | None
) -> SuiteAddresses:
    await deploy_steps(sender, rpc, plan.deployer, plan.steps, progress)
    await _wait_settled(rpc, plan.addresses)
    await verify_suite(rpc.settled, plan.addresses, settings)
    return plan.addresses


async def deploy_steps(
    sender: Sender, rpc: Rpc, deployer: Address, steps: Sequence[Step], progress: Progress | None = None
) -> None:
    """Deploy what is missing of a plan; safe to repeat with the same plan.

    Each step waits for one block only: nonces keep the order, also where a block is taken back meanwhile.

    Args:
        sender: pays.
        rpc: the chain.
        deployer: who creates: the sender itself, or a workshop of its own.
        steps: in the order of their nonces.
        progress: told each contract that stands.

    Raises:
        ConfigError: the deployer's nonce does not fit the plan, so its addresses cannot be had any more.
        InvalidDeployment: another contract is at a planned address.
    """
    nonce = await rpc.get_nonce(deployer)
    if deployer == sender.address and nonce < steps[0].nonce:
        raise ConfigError(f"deployer {encode_hex(deployer)} has nonce {nonce}, the plan begins at {steps[0].nonce}")
    for step in steps:
        if step.nonce < nonce:
            await _check_step(rpc, step, deployer)
        else:
            await _deploy_step(sender, rpc, deployer, step)
        if progress is not None:
            progress(step.contract, step.address)


async def _wait_quiet(sender: Sender, rpc: Rpc) -> None:
    """Wait until everything that a run before this one sent is settled.

    A step that is counted as done and then taken back would move every later one to another address.
    """
    if rpc.confirmations == 1:
        return
    end_s = rpc.clock.monotonic_s() + SETTLE_S
    while await rpc.get_nonce(sender.address, "pending") != await rpc.settled.get_nonce(sender.address):
        if rpc.clock.monotonic_s() > end_s:
            raise UnavailableChain(
                f"transactions of {encode_hex(sender.address)} are not settled after {SETTLE_S:.0f} s"
            )
        await rpc.clock.sleep(SETTLE_POLL_S)


async def _wait_settled(rpc: Rpc, addresses: SuiteAddresses) -> None:
    wanted = list(addresses.by_field().values())
    end_s = rpc.clock.monotonic_s() + SETTLE_S
    while not all(await rpc.settled.get_codes(wanted)):
        if rpc.clock.monotonic_s() > end_s:
            raise UnavailableChain(f"the contracts are not {rpc.confirmations} blocks deep after {SETTLE_S:.0f} s")
        await rpc.clock.sleep(SETTLE_POLL_S)


async def _check_step(rpc: Rpc, step: Step, deployer: Address) -> None:
    code = await rpc.get_code(step.address)
    if not code:
        raise ConfigError(
            f"nonce {step.nonce} of deployer {encode_hex(deployer)} was spent, but {step.contract} is not at "
            f"{encode_hex(step.address)}; deploy with a key that has sent nothing else"
        )
    if code != step.runtime:
        raise InvalidDeployment(f"the code at {encode_hex(step.address)} is not {step.contract}'s")


async def _deploy_step(sender: Sender, rpc: Rpc, deployer: Address, step: Step) -> None:
    by_workshop = deployer != sender.address
    receipt = await sender.send(deployer if by_workshop else None, step.creation, confirmations=1)
    if not by_workshop and receipt.contract != step.address:
        found = "nowhere" if receipt.contract is None else encode_hex(receipt.contract)
        raise ConfigError(
            f"{step.contract} was deployed at {found}, {encode_hex(step.address)} planned: the deployer's key sent "
            "something else meanwhile; begin again with a key made for deployment"
        )
    code = await rpc.get_code(step.address)
    if code != step.runtime and (code or rpc.confirmations == 1):  # none may be there where its block was taken back
        raise InvalidDeployment(f"the code at {encode_hex(step.address)} is not {step.contract}'s")


async def verify_suite(rpc: Rpc, addresses: SuiteAddresses, settings: NetworkSettings) -> None:
    """Check that a chain holds these contracts with these settings: code byte for byte, parameters by their views.

    Raises:
        InvalidDeployment: a contract is missing, is another one, or has other parameters.
    """
    by_field = addresses.by_field()
    codes = await rpc.get_codes(list(by_field.values()))
    for (field, address), code in zip(by_field.items(), codes, strict=True):
        name = CONTRACT_OF_FIELD[field]
        if code != load_artifact(name).runtime:
            what = "is not this program's version of it" if code else "does not exist"
            raise InvalidDeployment(f"{name} at {encode_hex(address)} {what}")
    questions = _list_parameters(addresses, settings, await rpc.chain_id())
    address_of = {CONTRACT_OF_FIELD[field]: address for field, address in by_field.items()}
    calls = [
        (address_of[name], load_artifact(name).abi.get_function(view).encode_call(arguments))
        for name, view, arguments, _ in questions
    ]
    for (name, view, arguments, expected), answer in zip(questions, await rpc.eth_calls(calls), strict=True):
        found = load_artifact(name).abi.get_function(view).decode_result(answer)
        if found != (expected,):
            shown = ", ".join(encode_hex(item) for item in arguments)
            raise InvalidDeployment(f"{name}.{view}({shown}) is {found!r}, {(expected,)!r} expected")


def _list_parameters(
    addresses: SuiteAddresses, settings: NetworkSettings, chain_id: int
) -> list[tuple[str, str, tuple[Value, ...], Value]]:
    """(contract, view, arguments, expected value) for every constructor parameter that can be read back."""
    questions: list[tuple[str, str, tuple[Value, ...], Value]] = []
    own = {
        ("Outbox", "network"): build_root_id(chain_id),
        ("Inbox", "network"): build_root_id(chain_id),
        ("Inbox", "rootChainId"): chain_id,
        ("Bridge", "hub"): build_root_id(chain_id),
    }
    for name, values in build_arguments(addresses, settings, addresses.credit).items():
        for parameter, value in zip(load_artifact(name).abi.constructor_names, values, strict=True):
            if (name, parameter) in UNREADABLE:
                continue
            if parameter == "judges":
                questions += [(name, "isJudge", (service, judge), True) for service, judge in value]
            elif parameter == "minimums":
                questions += [(name, "minPower", (service,), least) for service, least in value]
            else:
                questions.append((name, parameter, (), own.get((name, parameter), value)))
    return questions


async def fetch_network_id(rpc: Rpc) -> bytes:
    """Hash of the genesis block.

    Raises:
        InvalidAnswer: the node has no block 0.
    """
    genesis = await rpc.get_block(0)
    if genesis is None:
        raise InvalidAnswer(f"{rpc.url} has no genesis block")
    return genesis.hash

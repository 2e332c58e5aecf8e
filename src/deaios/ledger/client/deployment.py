"""Deploys the contracts of a network, and checks that a chain holds them.

Deployment is resumable: addresses follow from the deployer's nonces, so the chain itself says how far it came, and a
second run goes on from there. The deployer's key must send nothing else until the last contract stands.
"""

from collections.abc import Callable, Sequence

from deaios.ledger.abi import Value
from deaios.ledger.artifacts import load_artifact
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.ledger.records import CODE_BYTES_MAX, InvalidAnswer, read_data
from deaios.ledger.settings import NetworkSettings
from deaios.ledger.suite import CONTRACT_OF_FIELD, Step, SuiteAddresses, build_arguments, plan_suite
from deaios.ledger.valset import build_root_id
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import ConfigError, Invalid
from deaios.primitives.keys import Address

Progress = Callable[[str, Address], None]
"""Told the name and address of each contract that stands."""

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
    await deploy_steps(sender, rpc, plan.steps, progress)
    await verify_suite(rpc, plan.addresses, settings)
    return plan.addresses


async def deploy_steps(sender: Sender, rpc: Rpc, steps: Sequence[Step], progress: Progress | None = None) -> None:
    """Deploy what is missing of a plan; safe to repeat with the same plan.

    Raises:
        ConfigError: the deployer's nonce does not fit the plan, so its addresses cannot be had any more.
        InvalidDeployment: another contract is at a planned address.
    """
    nonce = await rpc.get_nonce(sender.address)
    if nonce < steps[0].nonce:
        raise ConfigError(
            f"deployer {encode_hex(sender.address)} has nonce {nonce}, the plan begins at {steps[0].nonce}"
        )
    for step in steps:
        if step.nonce < nonce:
            await _check_step(rpc, step, sender.address)
        else:
            await _deploy_step(sender, rpc, step)
        if progress is not None:
            progress(step.contract, step.address)


async def _check_step(rpc: Rpc, step: Step, deployer: Address) -> None:
    code = await rpc.get_code(step.address)
    if not code:
        raise ConfigError(
            f"nonce {step.nonce} of deployer {encode_hex(deployer)} was spent, but {step.contract} is not at "
            f"{encode_hex(step.address)}; deploy with a key that has sent nothing else"
        )
    if code != step.runtime:
        raise InvalidDeployment(f"the code at {encode_hex(step.address)} is not {step.contract}'s")


async def _deploy_step(sender: Sender, rpc: Rpc, step: Step) -> None:
    receipt = await sender.send(None, step.creation)
    if receipt.contract != step.address:
        found = "nowhere" if receipt.contract is None else encode_hex(receipt.contract)
        raise ConfigError(
            f"{step.contract} was deployed at {found}, {encode_hex(step.address)} planned: the deployer's key sent "
            "something else meanwhile; begin again with a key made for deployment"
        )
    if await rpc.get_code(step.address) != step.runtime:
        raise InvalidDeployment(f"the code at {encode_hex(step.address)} is not {step.contract}'s")


async def verify_suite(rpc: Rpc, addresses: SuiteAddresses, settings: NetworkSettings) -> None:
    """Check that a chain holds these contracts with these settings: code byte for byte, parameters by their views.

    Raises:
        InvalidDeployment: a contract is missing, is another one, or has other parameters.
    """
    by_field = addresses.by_field()
    answers = await rpc.batch([("eth_getCode", [encode_hex(item), "latest"]) for item in by_field.values()])
    for (field, address), answer in zip(by_field.items(), answers, strict=True):
        name = CONTRACT_OF_FIELD[field]
        code = read_data(answer, "code", limit=CODE_BYTES_MAX)
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

"""Why a message failed, in the words and codes of geth, on which wallets and libraries match.

Sources: geth's accounts/abi (reverts and panics), core/vm/errors.go, core/error.go. Knows no transport and no chain.
"""

from deaios.chain.evm import Outcome, Status
from deaios.chain.rendering import hex_data
from deaios.chain.rpc import REVERTED, RpcFault, server_error

_ERROR_SELECTOR = bytes.fromhex("08c379a0")
_PANIC_SELECTOR = bytes.fromhex("4e487b71")
_PANICS = {
    0x00: "generic panic",
    0x01: "assert(false)",
    0x11: "arithmetic underflow or overflow",
    0x12: "division or modulo by zero",
    0x21: "enum overflow",
    0x22: "invalid encoded storage byte array accessed",
    0x31: "out-of-bounds array access; popping on an empty array",
    0x32: "out-of-bounds access of an array or bytesN",
    0x41: "out of memory",
    0x51: "uninitialized function",
}
_HALTS = {
    "OutOfGas": "out of gas",
    "InvalidFEOpcode": "invalid opcode: INVALID",
    "OpcodeNotFound": "invalid opcode",
    "InvalidJump": "invalid jump destination",
    "StackUnderflow": "stack underflow",
    "StackOverflow": "stack limit reached 1024 (1023)",
    "CreateCollision": "contract address collision",
    "CreateContractSizeLimit": "max code size exceeded",
    "CreateContractStartingWithEF": "invalid code: must not begin with 0xef",
    "CreateInitCodeSizeLimit": "max initcode size exceeded",
    "StateChangeDuringStaticCall": "write protection",
    "CallNotAllowedInsideStatic": "write protection",
    "OutOfOffset": "return data out of bounds",
    "OutOfFunds": "insufficient balance for transfer",
    "CallTooDeep": "max call depth exceeded",
    "NonceOverflow": "nonce uint64 overflow",
}


def explain_revert(data: bytes) -> str:
    """The message of a revert as geth words it: `Error(string)` and `Panic(uint256)` are decoded."""
    reason = None
    if data[:4] == _ERROR_SELECTOR and len(data) >= 68:
        offset = int.from_bytes(data[4:36])
        size = int.from_bytes(data[4 + offset : 36 + offset]) if offset <= len(data) - 36 else len(data)
        if 36 + offset + size <= len(data):
            reason = data[36 + offset : 36 + offset + size].decode(errors="replace")
    elif data[:4] == _PANIC_SELECTOR and len(data) == 36:
        code = int.from_bytes(data[4:])
        reason = f"{_PANICS.get(code, 'unknown panic code')} (0x{code:x})"
    return "execution reverted" if reason is None else f"execution reverted: {reason}"


def failure_of(outcome: Outcome) -> RpcFault:
    """The error that a call's failed outcome becomes."""
    if outcome.status is Status.REVERT:
        return RpcFault(REVERTED, explain_revert(outcome.output), hex_data(outcome.output))
    return server_error(explain_halt(outcome))


def explain_halt(outcome: Outcome) -> str:
    """Why a message that neither succeeded nor reverted stopped."""
    return outcome.reason if outcome.is_refused else _HALTS.get(outcome.reason.partition("(")[0], outcome.reason)


def explain_invalid(text: str) -> RpcFault:
    """The engine's reason why a message cannot start."""
    if "LackOfFundForMaxFee" in text or "OverflowPayment" in text:
        return server_error("insufficient funds for gas * price + value")
    if "Initial gas spend" in text or "CallGasCostMoreThanGasLimit" in text:
        return server_error(f"intrinsic gas too low: {text}")
    if "CreateInitCodeSizeLimit" in text:
        return server_error("max initcode size exceeded")
    return server_error(text)

"""A small assembler for Cancun byte code.

The opcodes BASEFEE and BLOCKHASH are left out of the table, because the embedded chain refuses code with them.
"""

_NAMES = {
    0x00: "STOP ADD MUL SUB DIV SDIV MOD SMOD ADDMOD MULMOD EXP SIGNEXTEND",
    0x10: "LT GT SLT SGT EQ ISZERO AND OR XOR NOT BYTE SHL SHR SAR",
    0x20: "KECCAK256",
    0x30: "ADDRESS BALANCE ORIGIN CALLER CALLVALUE CALLDATALOAD CALLDATASIZE CALLDATACOPY CODESIZE CODECOPY GASPRICE",
    0x3B: "EXTCODESIZE EXTCODECOPY RETURNDATASIZE RETURNDATACOPY EXTCODEHASH",
    0x41: "COINBASE TIMESTAMP NUMBER PREVRANDAO GASLIMIT CHAINID SELFBALANCE",
    0x49: "BLOBHASH BLOBBASEFEE",
    0x50: "POP MLOAD MSTORE MSTORE8 SLOAD SSTORE JUMP JUMPI PC MSIZE GAS JUMPDEST TLOAD TSTORE MCOPY PUSH0",
    0xA0: "LOG0 LOG1 LOG2 LOG3 LOG4",
    0xF0: "CREATE CALL CALLCODE RETURN DELEGATECALL CREATE2",
    0xFA: "STATICCALL",
    0xFD: "REVERT INVALID SELFDESTRUCT",
}
OPCODES = {name: first + index for first, names in _NAMES.items() for index, name in enumerate(names.split())}
OPCODES |= {f"DUP{index}": 0x7F + index for index in range(1, 17)}
OPCODES |= {f"SWAP{index}": 0x8F + index for index in range(1, 17)}
FORBIDDEN_BYTES = b"\x40\x48"
"""BLOCKHASH and BASEFEE: random bytes that run as code are kept free of them."""
_PUSH0 = 0x5F

Item = str | int | bytes


def assemble(*items: Item) -> bytes:
    """Text is an opcode, an int its shortest PUSH (zero takes PUSH1), bytes go in as they are."""
    out = bytearray()
    for item in items:
        if isinstance(item, str):
            out.append(OPCODES[item])
        elif isinstance(item, bytes):
            out += item
        else:
            out += push(item.to_bytes(max(1, (item.bit_length() + 7) // 8)))
    return bytes(out)


def push(data: bytes) -> bytes:
    """PUSH of exactly these bytes, at most 32."""
    return bytes((_PUSH0 + len(data),)) + data


def place(data: bytes, offset: int = 0) -> bytes:
    """Code that puts data into memory, a word at a time; what follows it up to the next word becomes zero."""
    words = [data[start : start + 32].ljust(32, b"\0") for start in range(0, len(data), 32)]
    return b"".join(assemble(push(word), offset + 32 * index, "MSTORE") for index, word in enumerate(words))


def build_init_code(runtime: bytes, before: bytes = b"") -> bytes:
    """Code that runs `before` and then deploys `runtime`, which lies behind it."""
    size = push(len(runtime).to_bytes(3))

    def head(start: int) -> bytes:
        return before + assemble(size, push(start.to_bytes(3)), 0, "CODECOPY", size, 0, "RETURN")

    return head(len(head(0))) + runtime

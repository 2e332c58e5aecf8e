"""Methods of Ethereum nodes that this chain does not answer, each with the reason and the way out.

Their code and first words are those of a method that does not exist, because that is what libraries look for before
they try another way.
"""

from deaios.chain.rpc import METHOD_NOT_FOUND, RpcFault

_WAY_OUT = "use a network by URL (--chain URL) where it is needed"
_NO_TRIE = "the embedded chain commits to its state by a multiset hash and keeps no Merkle-Patricia trie to prove from"
_NO_TRACE = (
    "the embedded engine does not show the memory of a running message, from which a trace takes the input and output "
    "of each call, and state before the newest block is not kept"
)
_NO_SIMULATION = "the embedded engine runs single messages (eth_call with overrides), not sequences of blocks"
_NO_BLOBS = "the embedded chain carries no blobs and its blocks have no blob gas"
_NO_KEYS = "this node holds no keys of users; sign the transaction and send it with eth_sendRawTransaction"

REASONS = {
    "eth_getProof": _NO_TRIE,
    "eth_simulateV1": _NO_SIMULATION,
    "eth_blobBaseFee": _NO_BLOBS,
    "debug_traceTransaction": _NO_TRACE,
    "debug_traceCall": _NO_TRACE,
    "debug_traceBlock": _NO_TRACE,
    "debug_traceBlockByNumber": _NO_TRACE,
    "debug_traceBlockByHash": _NO_TRACE,
    "trace_block": _NO_TRACE,
    "trace_call": _NO_TRACE,
    "trace_filter": _NO_TRACE,
    "trace_transaction": _NO_TRACE,
    "eth_sendTransaction": _NO_KEYS,
    "eth_sign": _NO_KEYS,
    "eth_signTransaction": _NO_KEYS,
}


def refusal_of(name: str) -> RpcFault:
    """The error for a method that is not in any table."""
    words = f"the method {name} does not exist/is not available"
    if (reason := REASONS.get(name)) is None:
        return RpcFault(METHOD_NOT_FOUND, words)
    end = "" if reason is _NO_KEYS else f"; {_WAY_OUT}"
    return RpcFault(METHOD_NOT_FOUND, f"{words}: {reason}{end}")

"""The embedded EVM network of one machine: execution, mempool, blocks, JSON-RPC."""

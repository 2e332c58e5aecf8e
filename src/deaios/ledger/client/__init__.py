"""Typed clients of the contracts, for any EVM network by URL: JSON-RPC, transactions, deployment, faucet."""

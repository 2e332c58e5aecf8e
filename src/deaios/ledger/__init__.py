"""Settlement: contracts and artifacts, EIP-712 structs, transaction codec, typed clients for any EVM network by URL."""

"""Published blobs that anyone can have for a term, provably: payloads, proofs, sampling, who holds which row."""

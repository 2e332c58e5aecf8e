"""KZG of the same bytes, run with the peers' own Python: `python kzg_peer.py TRUSTED_SETUP BLOB`.

For each line on standard input: commitment and all cell proofs of the blob once; prints the CPU seconds. This is what
an Ethereum data-availability publisher computes (EIP-7594). Imports nothing of ours.
"""

import sys
import time
from pathlib import Path

import ckzg


def main(setup: str, blob: bytes) -> None:
    trusted = ckzg.load_trusted_setup(setup, 8)  # 8 is the fastest precomputation that EIP-7594 clients use
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        ckzg.blob_to_kzg_commitment(blob, trusted)
        ckzg.compute_cells_and_kzg_proofs(blob, trusted)
        print(time.process_time() - start, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).read_bytes())

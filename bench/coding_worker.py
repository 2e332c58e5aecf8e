"""The portable tier in a process of its own, because a process decides its tier once: `python -m bench.coding_worker`.

For each line on standard input: codes the bench's payload once; prints the CPU seconds.
"""

import sys
import time

from bench.coding import PROFILE, build_payload
from deaios.coding.matrix import encode


def main() -> None:
    data = build_payload()
    encode(data, PROFILE)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        encode(data, PROFILE)
        print(time.process_time() - start, flush=True)


if __name__ == "__main__":
    main()

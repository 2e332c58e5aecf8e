"""`make soak`: searches that go on until Ctrl-C or a finding. Usage: python -m bench.soak [ROUNDS]

For now: detection of every listed cheat with fresh seeds (bench.detection), round after round.
"""

import subprocess
import sys


def main(arguments: list[str]) -> int:
    rounds = int(arguments[0]) if arguments else 1 << 30
    for number in range(rounds):
        print(f"round {number + 1}", flush=True)
        done = subprocess.run([sys.executable, "-m", "bench.detection", "--json"], check=False)
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(0)

"""Differential fuzzing of the embedded chain against a foreign node; shared by `soak.chain` and tests/chain."""

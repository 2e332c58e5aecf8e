"""Benchmarks: ratios beside a peer in one run; `python -m bench` writes bench/results/latest.json."""

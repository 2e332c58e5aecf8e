"""Slashing by signatures alone: what a buyer holds is compared, and what excludes each other is proven on chain."""

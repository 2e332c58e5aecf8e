"""Verifiable erasure code: every row of a coded matrix proves itself against one commitment. Pure."""

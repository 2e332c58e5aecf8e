"""Verifiable erasure code: every row of a coded matrix proves itself against one commitment. Pure.

`deaios.coding.matrix` is the door: encode, prove, verify, decode, rebuild. The format is docs/spec/coding.md.
"""

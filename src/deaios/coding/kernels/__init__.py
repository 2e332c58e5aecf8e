"""Hot loops of the code, as LLVM assembly compiled for this machine at first use, behind one set of functions.

Every tier gives the same bits. `tiers` says which one runs; nothing here knows the field, rows or proofs.
"""

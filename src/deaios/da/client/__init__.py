"""Publish blobs, read them, sample them and call members to account, trusting none of them."""

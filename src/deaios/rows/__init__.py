"""Manifests, the row store and row transfer: what storage and data availability share."""

"""Masks for callers on an event loop."""

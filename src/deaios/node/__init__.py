"""Runs roles as supervised processes; the only place that reads configuration and starts processes."""

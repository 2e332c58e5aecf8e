"""Every command, a few lines each."""

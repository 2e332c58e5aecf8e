"""Re-execution of purchases on an engine of this process."""

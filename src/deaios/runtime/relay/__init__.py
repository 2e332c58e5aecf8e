"""The outbound relay: a role that cannot be dialled dials out, and is reached through whoever it dialled."""

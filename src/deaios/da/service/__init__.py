"""A member of the committee: its door and its duties."""

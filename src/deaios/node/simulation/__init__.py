"""The simulated world: the same roles as live, on virtual time, under seeded faults, with cheats among them."""

"""A provider's defence: the appeal of a verdict that its own replay refutes."""

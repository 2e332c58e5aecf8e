"""What each role's process does: connect, take its place in the network, serve until told to stop."""

"""What serves several networks at once: validators that say what they see, and relayers that carry it."""

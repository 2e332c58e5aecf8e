"""What strangers agree on: offers, channels, purchases, receipts, batches, routing. Knows no engine and no gateway."""

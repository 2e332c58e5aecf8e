"""Discovery, offers, routing, payment channels, metering, receipts, batches, claims."""

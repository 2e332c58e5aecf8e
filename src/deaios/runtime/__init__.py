"""Clock, dice, disk, network and their live versions; bounded HTTP, signed requests, journals, metrics, logs."""

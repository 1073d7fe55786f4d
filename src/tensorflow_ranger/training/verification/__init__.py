"""Which models train exactly as on whole batches, and what differs where not."""

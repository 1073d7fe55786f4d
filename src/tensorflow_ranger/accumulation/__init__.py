"""Windows of micro-batches: masses, sums and the mean they make."""

"""The last layer and the loss, in chunks of rows: neither all logits nor their gradient exist."""

"""Many gradients in, one out."""

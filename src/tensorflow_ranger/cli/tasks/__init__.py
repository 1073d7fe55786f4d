"""What the command line can train: data and a model, one file per task."""

"""What can be trained: the tasks of this package, and how those of others are found."""

"""Where the data of tasks comes from, and what several tasks share."""

"""What models of several tasks share. Needs Keras, so it is imported when a backend is chosen."""

"""What is summed over the replicas of a distributed run, and when."""

"""What is told: the event table as a live stream."""

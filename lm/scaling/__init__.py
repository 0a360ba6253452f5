"""What models cost and how loss depends on it."""

"""Training: one pure step, one linear loop."""

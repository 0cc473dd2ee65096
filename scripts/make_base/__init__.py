"""Training of the embedded base."""

"""Training and evaluation of the demo networks."""

"""Measurements: pure functions from image and label maps to value-or-null with status and provenance."""

"""Bytes by their digest: written once, durable, never overwritten."""

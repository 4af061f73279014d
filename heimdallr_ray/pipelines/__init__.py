"""The chain: `steps` wires the pure functions together, `study` runs them durably for one study."""

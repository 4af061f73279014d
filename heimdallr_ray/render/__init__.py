"""Evidence: slices, key images and overlays, NIfTI for the viewer. Same input, same bytes."""

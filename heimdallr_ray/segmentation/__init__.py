"""Segmentation: from a Volume to label maps, by models that stay loaded."""

"""A package, so that its stack ends with the last test of this folder and not with the last of all."""

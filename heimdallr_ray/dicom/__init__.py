"""DICOM objects in, volumes out: bounded header reading, series selection, geometry, pixel decoding, assembly.

The patient frame is DICOM's own LPS inside this package and RAS in everything it hands out.
"""

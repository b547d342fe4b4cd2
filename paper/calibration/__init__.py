"""Converts published data sets to the calibration rows that DAM and AdaMerging read."""

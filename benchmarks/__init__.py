"""Timings. Not part of the package."""

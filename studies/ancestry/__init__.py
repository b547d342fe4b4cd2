"""Experts that start from different parents (claim C11)."""

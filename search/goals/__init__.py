"""Searches for more than one goal, and other algorithms than CMA-ES."""

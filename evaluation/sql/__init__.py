"""Runs model-written SQL, which is hostile input, and judges what it returns."""

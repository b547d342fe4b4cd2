"""Differentiable Adaptive Merging: column coefficients learnt on the experts' own data."""

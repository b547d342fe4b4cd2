"""What matters at scale: size, number of experts, base quality, and what predicts a merge."""

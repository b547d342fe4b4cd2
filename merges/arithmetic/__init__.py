"""What methods share: sums, masks, thresholds, Gram matrices, kernels."""

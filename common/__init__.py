"""What every stage shares: errors, whole files, manifests, cost, progress, command lines."""

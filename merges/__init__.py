"""N checkpoints in, one out: one file per merge method, a registry, an engine."""

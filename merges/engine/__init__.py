"""The machinery of a merge: registry, checks, streaming, output."""

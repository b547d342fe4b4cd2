"""Quality against price over search seeds."""

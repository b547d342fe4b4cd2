"""mergekit's configurations, read as orders to our engine."""

"""Studies beyond the tables: one folder each."""

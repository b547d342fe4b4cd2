"""Stand-ins for the paper's checkpoints and data sets, to run its configuration without them."""

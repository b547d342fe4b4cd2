"""Stand-ins for the paper's checkpoints and data sets: its configuration runs without them."""

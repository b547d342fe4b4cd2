"""What matters in DAM, over several worlds."""

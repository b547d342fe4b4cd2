"""Quality against price, over search seeds (claim C2)."""

"""Models on disk: reading them, checking that they belong together, writing them."""

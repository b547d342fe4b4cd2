"""What serves only the published scale; see README.md."""

"""What in DAM matters, over three worlds."""

"""What an experiment's configuration may say: typed models, one file for each part of it."""

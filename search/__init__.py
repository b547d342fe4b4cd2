"""Choosing a merge by its score on the dev items: tuning, greedy soup, evolutionary search."""

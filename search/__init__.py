"""Choosing a merge's parameters by its score on the dev items: tuning and evolutionary search."""

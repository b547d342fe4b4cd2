"""Fetches the published models and data sets of the paper, each at one recorded revision."""

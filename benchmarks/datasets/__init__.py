"""Readers of data sets in the layouts that their owners publish, and the deterministic image transforms."""

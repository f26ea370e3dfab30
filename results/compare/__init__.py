"""Comparisons of records: two encoders, two protocols, or every two columns of the tables."""

"""The report: one HTML file with everything that the records say, readable without a network."""

"""One HTML file with everything that the records say, for a browser without a network."""

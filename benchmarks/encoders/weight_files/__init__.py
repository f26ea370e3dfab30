"""Reading weight files that nobody vouches for."""

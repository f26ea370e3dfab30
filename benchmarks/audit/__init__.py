"""Whether an encoder is what its card says: what was loaded, what it puts out, and what a wrong card would change."""

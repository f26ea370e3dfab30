"""Features: every output that the requested protocols need, from one pass over the images, kept on disk."""

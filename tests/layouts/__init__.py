"""Data sets of a few images each, written in the layout that their owners publish: one `write_*(root)` per set."""

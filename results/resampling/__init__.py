"""Bootstrap over test items: how far a figure would move with other data."""

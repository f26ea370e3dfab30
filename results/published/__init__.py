"""The field's published figures, and where each belongs."""

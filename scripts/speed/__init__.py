"""Measurements of `make speed`, one module per area."""

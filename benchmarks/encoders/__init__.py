"""Pretrained encoders behind one interface, strictly loaded, each with its card."""

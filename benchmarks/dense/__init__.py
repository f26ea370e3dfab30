"""Frozen dense tasks: segmentation and depth from the patch features of an encoder that is not trained."""

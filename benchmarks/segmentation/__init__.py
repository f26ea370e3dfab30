"""Semantic segmentation with an FCN on the encoder, trained and run by mmsegmentation."""

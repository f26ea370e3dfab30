"""Linear classifiers on frozen encoders: the AvgPool and Feature1 … Feature5 probes, and one on stored features."""

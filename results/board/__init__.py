"""The board: a static site of the encoders and benchmarks in a folder of records."""

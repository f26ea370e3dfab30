"""A model-zoo page held against the records and against what was published."""

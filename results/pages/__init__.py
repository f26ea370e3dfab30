"""Pages of a model zoo and the papers' tables: layouts as data, figures from records and published.csv."""

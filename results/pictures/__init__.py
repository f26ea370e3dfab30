"""Pictures that are drawn from records alone."""

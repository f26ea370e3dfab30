"""Records as tables: which may stand side by side, what is more than noise, and their formats."""

"""Questions about two records or all of them: diff, explain, correlations."""

"""One matplotlib figure for each result. Figures are returned, never shown."""

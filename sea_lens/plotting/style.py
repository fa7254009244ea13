"""Colors that all pictures share, told apart by color-blind readers and in print."""

PROMOTED, SUPPRESSED, GREY, INK = "#1b7f79", "#c8553d", "#9aa0a6", "#222222"

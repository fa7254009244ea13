"""The `sea-lens` command."""

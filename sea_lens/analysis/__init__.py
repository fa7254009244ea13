"""What did the edit do, and where: measurements and the controls they must beat."""

"""Data: demonstrations and questions, the published files they come from, and the prompts around them. No model runs here."""

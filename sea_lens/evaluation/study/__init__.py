"""`sl.study`: tries settings on one half of the data within a time, confirms the best on the other, and writes a verdict.

`plans` says what is tried, `trials` tries it, `search` chooses, `confirm` scores the choice once beside its `controls`, and
`result` and `report` show it.
"""

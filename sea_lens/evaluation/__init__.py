"""Benchmarks of a model before and after an edit: one file per benchmark, registered by name, with one kind of result.

Every evaluation is a function of `(model, data, editor)`. It attaches the editor itself and measures the unedited model too,
so it warns about hooks that the model carries already. Functions that take no editor, such as `answer_greedily`, measure the
model as it is, with all of its hooks.
"""

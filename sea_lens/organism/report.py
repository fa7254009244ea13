"""The demo's result as text, bars and three answers before and after; and the code that does the same."""

from __future__ import annotations

from sea_lens.organism.experiment import STRENGTHS, OrganismResult
from sea_lens.tuning import describe_setting


def report(result: OrganismResult, n_fitting: int) -> str:
    """What `sea-lens demo` says.

    Args:
        result: From `sea_lens.organism.experiment.run`.
        n_fitting: How many facts it was fitted on.
    """
    settings = result.tuning.table
    lines = [
        "",
        f"SEA fitted on {n_fitting} facts in {result.fit_seconds:.2f} s, at the best of {len(settings)} settings there:",
        f"  {describe_setting(settings.iloc[0])}",
        f"truthful answers on {result.plain.n} facts it has never seen, with 95 % intervals",
    ]
    for name, row in result.table.iterrows():
        bar = "=" * round(24 * row["truthful"])
        interval = f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        lines.append(f"  {name:<22} {bar:<24} {row['truthful']:>6.1%}  {interval}")
    lines.append("")
    for example in result.examples.to_dict("records"):
        kinds = {example["myth"]: "myth", example["truth"]: "true"}
        plain, edited = (f"{example[name]} ({kinds.get(example[name], 'neither')})" for name in ("plain", "edited"))
        lines.append(f"Q: {example['question']:<34} plain: {plain:<20} edited: {edited}")
    return "\n".join(lines)


def code() -> str:
    """The lines of Python that do what the demo does."""
    return f"""    import sea_lens as sl
    model, world = sl.load_organism()
    demonstrations = world.demonstrations().with_neutral_answers(model, max_new_tokens=1)
    activations = sl.collect_activations(model, demonstrations)
    questions = world.questions(world.fitting)
    tuning = sl.tune_sea(model, activations, questions, strengths={STRENGTHS}, max_new_tokens=1)
    print(tuning.table.head())
    with tuning.best.attached(model):
        print(sl.answer_greedily(model, world.questions(), max_new_tokens=1).truthful)
"""

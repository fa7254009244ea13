import pandas as pd
import pytest

from sea_lens.cli.output import console, harmless, show


@pytest.mark.parametrize("width", [40, 60, 80, 160])
def test_tables_cut_no_cell_and_break_no_word(monkeypatch, capsys, width):
    monkeypatch.setattr(console, "_width", width)
    names = ["log_probability_difference", "edited", "unedited", "refitted_accuracy", "control_p_value", "KL"]
    table = pd.DataFrame({name: [0.123456, -1234.5] for name in names})
    table["said"] = ["a [bold]long[/bold] answer of many words that takes several lines", "none"]
    show(table.set_axis(["one", "another"]).rename_axis("layer"), "All of it")
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    words = set(" ".join(out.replace("│", " ").replace("┃", " ").split()).split(" "))
    told = (
        "log probability difference refitted accuracy control KL another 0.123 -1,230 [bold]long[/bold] several lines"
    )
    assert set(told.split()) <= words
    assert out.count("All of it") == 1


def test_control_characters_are_escaped():
    assert harmless("a\x1b[31m\x07é\tb") == "a\\x1b[31m\\x07é\\tb"
    assert harmless("a\nb", "\n") == "a\nb"

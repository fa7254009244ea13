"""What is said plain and edited: generate, and chat with piped lines."""

import io
import json
import sys

import pytest
from conftest import assert_is_one_error

from sea_lens import Editor, generate, measure_damage
from sea_lens.cli import using
from sea_lens.cli.prompting import Talking
from sea_lens.errors import InputError
from sea_lens.models.generate import greedy_answers

PROMPTS = ["<anyone> Q Mira home A", "<truthful> Q Ada pet A"]
SHORT = ["--max-new-tokens", "3"]
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}<{{ m['content'] }}> {% else %}{{ m['content'] }} {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ end | default('A') }}{% endif %}"
)


@pytest.fixture
def chatty(organism, monkeypatch):
    """The embedded model with a chat template and a switch."""
    monkeypatch.setattr(organism[0].tokenizer, "chat_template", TEMPLATE)
    return organism[0]


def texts_of(out):
    """By title, the texts under it: by column, or by row where they stand below each other."""
    found, rows, last = [], [], ""
    for line in out.splitlines():
        if line.startswith("│"):
            rows.append([cell.strip() for cell in line.split("│")[1:-1]])
        elif line.startswith("╭"):
            title = last
        elif line.startswith("╰"):
            found.append((title, rows))
            rows = []
        last = line.strip()
    return found


def test_generate_shows_plain_and_edited_side_by_side(sea_lens, organism, editor_folder):
    model, _ = organism
    code, out, _ = sea_lens("generate", "organism", editor_folder, *PROMPTS, *SHORT, "--strength", 100)
    assert code == 0
    plain = greedy_answers(model, PROMPTS, 3, stop=(), progress=False)
    edited = greedy_answers(
        model, PROMPTS, 3, stop=(), editor=Editor.from_pretrained(editor_folder).scaled(100.0), progress=False
    )
    assert plain != edited
    columns = ["plain", "strength 100"]
    assert texts_of(out) == [(PROMPTS[i], [columns, [plain[i], edited[i]]]) for i in range(2)]
    assert "changed none" not in out
    widths = {tuple(map(len, line.split("│")[1:-1])) for line in out.splitlines() if line.startswith("│")}
    assert all(abs(one - other) <= 1 for one, other in widths)  # whatever the answers' length
    code, out, _ = sea_lens("generate", "organism", editor_folder, *PROMPTS, *SHORT, "--strength", 100, "--json")
    told = json.loads(out)["tables"]
    assert [one["title"] for one in told] == PROMPTS
    rows = [[dict(zip(columns, pair, strict=True))] for pair in zip(plain, edited, strict=True)]
    assert [one["rows"] for one in told] == rows
    code, out, _ = sea_lens("generate", "organism", editor_folder, PROMPTS[0], *SHORT, "--strength", 0)
    assert (code, "At strength 0 there is no edit, so the answers are alike." in out) == (0, True)


def test_several_strengths_are_read_below_each_other(sea_lens, organism, editor_folder):
    strengths = (-100.0, 0.0, 1.0, 100.0)
    code, out, _ = sea_lens("generate", "organism", editor_folder, PROMPTS[1], *SHORT, "--strengths=-100,0,1,100")
    assert code == 0
    editor = Editor.from_pretrained(editor_folder)
    said = [generate(organism[0], PROMPTS[1], editor.scaled(one), max_new_tokens=3) for one in strengths]
    expected = [[f"strength {one:g}", text] for one, text in zip(strengths, said, strict=True)]
    assert texts_of(out) == [(PROMPTS[1], expected)]
    code, _, err = sea_lens("generate", "organism", editor_folder, "a", "--strength", 2, "--strengths", "1,2")
    assert code == 2
    assert_is_one_error(err, "Of --strength, --strengths and --kl, several were given")


def test_babble_is_called_so(organism, capsys):
    using.note_repetition(organism[0], "strength 9", ["Lima ."], ["red " * 20])
    assert (
        "note: strength 9, 90% of token pairs are repeated, and 0% plain: this edit breaks" in capsys.readouterr().out
    )
    using.note_repetition(organism[0], "edited", ["red " * 20], ["red " * 20])
    using.note_repetition(organism[0], "edited", ["Lima ."], [""])
    assert capsys.readouterr().out == ""


def test_generate_asks_in_the_chat_template(sea_lens, chatty, editor_folder):
    asked = "Q Mira home"
    options = ["--chat-option", 'end="A"', "--system", "truthful", "--temperature", 1, "--seed", 3]
    code, out, _ = sea_lens("generate", "organism", editor_folder, asked, *SHORT, *options)
    assert code == 0
    editor = Editor.from_pretrained(editor_folder)
    how = {"max_new_tokens": 3, "temperature": 1.0, "seed": 3}
    said = [generate(chatty, f"<truthful> {asked} A", one, **how) for one in (None, editor)]
    assert texts_of(out) == [(asked, [["plain", "edited"], said])]
    for wrong, message in [
        (["--no-chat", "--system", "x"], "are for the chat template"),
        (["--chat-option", "loud"], "--chat-option is NAME=VALUE"),
        (["--chat-option", "loud=true"], "no switch 'loud'"),
        (["--top-k", "-1"], "from 0 on"),
        (["--chat", "--top-p", "0.5"], "Give a --temperature"),
    ]:
        code, _, err = sea_lens("generate", "organism", editor_folder, asked, *SHORT, *wrong)
        assert code == 2
        assert_is_one_error(err, message)


# --- chat ------------------------------------------------------------------------------------------------------------


def talk(sea_lens, monkeypatch, editor_folder, *lines, options=()):
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    code, out, err = sea_lens("chat", "organism", editor_folder, *SHORT, *options)
    assert (code, err) == (0, "")
    return out


def test_each_side_of_a_chat_keeps_its_own_history(sea_lens, monkeypatch, chatty, editor_folder):
    lines = ["Q Mira home", "Q Ada pet"]
    out = talk(sea_lens, monkeypatch, editor_folder, *lines, options=["--strength", 100, "--system", "truthful"])
    editor = Editor.from_pretrained(editor_folder).scaled(100.0)
    histories = {None: [{"role": "system", "content": "truthful"}], editor: [{"role": "system", "content": "truthful"}]}
    expected = []
    for line in lines:
        said = []
        for one, history in histories.items():
            history.append({"role": "user", "content": line})
            said.append(generate(chatty, history, one, max_new_tokens=3))
            history.append({"role": "assistant", "content": said[-1]})
        expected.append((f"> {line}", [["plain", "edited, strength 100"], said]))
    assert expected[1][1][1][0] != expected[1][1][1][1]
    assert texts_of(out) == expected


def test_commands_of_a_chat(sea_lens, monkeypatch, chatty, editor_folder):
    lines = ["/strength 0", "Q Mira home", "/undo", "Q Mira home", "/strength 100", "/reset", "Q Mira home", ""]
    lines += ["/strength x", "/strength nan", "/nothing", "/system truthful", "Q Mira home", "/help", "/quit", "never"]
    out = talk(sea_lens, monkeypatch, editor_folder, *lines)
    first, again, strong, truthful = (rows for _, rows in texts_of(out))
    assert first == again
    assert first[0] == ["plain", "edited, strength 0"]
    assert first[1][0] == first[1][1] == strong[1][0] != strong[1][1]
    assert truthful[1][0] == generate(chatty, "<truthful> Q Mira home A", max_new_tokens=3) != strong[1][0]
    assert "/strength x: a strength is a number such as 0.5, and 'x' was given." in out
    assert "and 'nan' was given" in out
    assert "no command /nothing" in out
    assert "> never" not in out
    for word in ("strength", "system", "undo", "reset", "settings", "help", "quit"):
        assert f"\n/{word} " in out


def test_a_chat_at_a_cost(sea_lens, monkeypatch, chatty, editor_folder):
    out = talk(sea_lens, monkeypatch, editor_folder, "Q Mira home", options=["--kl", 0.05])
    factor = float(out.split(" of the fitted strength, a KL of 0.05")[0].split("At ")[-1])
    editor = Editor.from_pretrained(editor_folder).scaled(factor)
    assert 0.045 < measure_damage(chatty, [], editor, examples=0).kl < 0.055
    code, _, err = sea_lens("chat", "organism", editor_folder, "--kl", 0.05, "--strength", 2)
    assert (code, "Give one of them" in err) == (2, True)


def test_ctrl_c_stops_an_answer_and_leaves_no_trace_of_it(sea_lens, monkeypatch, chatty, editor_folder):
    calls, real = [], using.say_next

    def interrupted(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(using, "say_next", interrupted)
    out = talk(sea_lens, monkeypatch, editor_folder, "Q Mira home", "Q Mira home")
    assert "stopped" in out
    assert len(texts_of(out)) == 1
    assert calls[2][1] == calls[0][1]

    class Stops(io.StringIO):
        def readline(self, *_):
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Stops())
    assert sea_lens("chat", "organism", editor_folder)[0] == 0


def test_a_line_that_cannot_be_answered_is_said_and_forgotten(sea_lens, monkeypatch, chatty, editor_folder):
    out = talk(sea_lens, monkeypatch, editor_folder, "Q " * 300, "Q Mira home")
    assert "the model's context is" in out
    assert "/reset begins anew" in out
    assert texts_of(out) == texts_of(talk(sea_lens, monkeypatch, editor_folder, "Q Mira home"))


def test_a_model_without_a_chat_template_is_refused_before_the_first_word(sea_lens, monkeypatch, editor_folder):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
    code, _, err = sea_lens("chat", "organism", editor_folder)
    assert code == 2
    assert_is_one_error(err, "no chat template")


def test_a_switch_has_a_value():
    found = Talking(chat_options=["a=false", "b=3", "c=plain text", "d=True", 'e="x"']).switches()
    assert found == {"a": False, "b": 3, "c": "plain text", "d": True, "e": "x"}
    with pytest.raises(InputError, match="NAME=VALUE"):
        Talking(chat_options=["=3"])

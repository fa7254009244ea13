"""Wrong command lines: one line that begins with `error:`, exit code 2, nothing written or lost, in bounded time."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import assert_is_one_error, run_command

import sea_lens as sl

LONG = "x" * 300
FORGED = "\x1b[2J\x1b[31merror: all is lost\x1b[0m\r\n\u202eevil\x07"


@pytest.fixture(scope="module")
def things(tmp_path_factory, demos, editor_folder):
    """Files that command lines name, by word."""
    folder = tmp_path_factory.mktemp("wrong")
    found = {"demos": demos, "editor": editor_folder, "dir": folder, "file": folder / "file"}
    found["file"].write_text("here")
    found["empty"] = folder / "empty.jsonl"
    found["empty"].write_text("")
    found["blank"] = folder / "blank.csv"
    found["blank"].write_text("prompt,positive,negative\n")
    found["broken"] = folder / "broken.jsonl"
    found["broken"].write_text('{"prompt": "a"\n')
    found["deep"] = folder / "deep.json"
    found["deep"].write_text("[" * 100_000)
    found["binary"] = folder / "binary.csv"
    found["binary"].write_bytes(bytes(range(256)) * 10)
    found["surrogate"] = folder / "surrogate.jsonl"
    found["surrogate"].write_text('{"prompt": "\\ud800", "positive": "a", "negative": "b"}\n')
    found["twice"] = folder / "twice.csv"
    found["twice"].write_text("prompt,positive,positive,negative\na,b,c,d\n")
    found["other"] = folder / "other.jsonl"
    found["other"].write_text('{"x": 1}\n')
    found["frozen"] = folder / "frozen"
    found["frozen"].mkdir()
    found["frozen"].chmod(0o500)
    alien = sl.Editor({0: sl.AffineEdit.of_shift(torch.ones(8))}, sl.EditorCard("by hand"))
    alien.save_pretrained(folder / "alien")
    found["alien"] = folder / "alien"
    sl.Editor({9: sl.AffineEdit.of_shift(torch.ones(128))}, sl.EditorCard("by hand")).save_pretrained(folder / "tall")
    found["tall"] = folder / "tall"
    shutil.copytree(editor_folder, folder / "forged")
    config = json.loads((folder / "forged" / "config.json").read_text())
    config["where"] = "abc"
    (folder / "forged" / "config.json").write_text(json.dumps(config))
    found["forged"] = folder / "forged"
    found["activations"] = folder / "activations.safetensors"
    sides = {side: {0: torch.randn(12, 128), 1: torch.randn(12, 128)} for side in ("positive", "negative", "neutral")}
    sl.Activations.from_tensors(**sides).save(found["activations"])
    found["projection"] = folder / "view.pt"
    torch.save(torch.zeros(1).expand(1, 30_000, 30_000), found["projection"])
    yield {name: str(path) for name, path in found.items()}
    found["frozen"].chmod(0o700)


COLLECT = "collect organism {demos} --out OUT"
FIT = "fit sea organism {demos} --out OUT"
EFFECTS = "effects organism {editor} organism --out OUT"
TRUTH = "evaluate truthfulqa organism organism --editor {editor} --out OUT"
WRONG = """
nothing
--nothing
collect
collect organism
collect nothing-here {demos} --out OUT
collect ../../x {demos} --out OUT
collect {dir} {demos} --out OUT
collect {file} {demos} --out OUT
collect organism nothing.jsonl --out OUT
collect organism {dir} --out OUT
collect organism {empty} --out OUT
collect organism {blank} --out OUT
collect organism {broken} --out OUT
collect organism {deep} --out OUT
collect organism {binary} --out OUT
collect organism {surrogate} --out OUT
collect organism {twice} --out OUT
collect organism {other} --out OUT
collect organism {activations} --out OUT
collect organism {demos} --out {file}
collect organism {demos} --out {file}/x
collect organism {demos} --out /proc/x
collect organism {demos} --out LONG
collect organism {demos} --out
COLLECT --layers 0-99999999999
COLLECT --layers 99999999999
COLLECT --layers first:99999999999
COLLECT --layers 5-3
COLLECT --layers 9
COLLECT --layers -1
COLLECT --layers x
COLLECT --layers 0,,1
COLLECT --layers 1e9
COLLECT --layers ''
COLLECT --site resid_poste
COLLECT --site ''
COLLECT --token first
COLLECT --token 1.5
COLLECT --batch-size 0
COLLECT --batch-size -1
COLLECT --batch-size 1e3
COLLECT --batch-size 99999999999999999999999999x
COLLECT --dtype float99
COLLECT --dtype int8
COLLECT --device gpu9
COLLECT --device cuda:99
COLLECT --quantization 5bit
COLLECT --revision ''
COLLECT --nothing 3
COLLECT --column prompt
COLLECT --column prompt=nothing
COLLECT --column nothing=prompt
collect organism {demos} {demos} --out OUT
TRUTH --seed 9223372036854775808
TRUTH --confidence 1
TRUTH --n 0
TRUTH --n 99999
TRUTH --prompt nothing
TRUTH --max-new-tokens 3
evaluate nothing organism organism --out OUT
evaluate bbq organism {demos} --out OUT
evaluate truthfulqa organism {deep} --out OUT
evaluate truthfulqa organism {binary} --out OUT
evaluate truthfulqa organism {file} --out OUT
evaluate perplexity organism {empty} --out OUT
evaluate perplexity organism {dir} --out OUT
evaluate lm-eval organism hellaswag --limit inf --out OUT
evaluate lm-eval organism hellaswag --limit -1 --out OUT
evaluate lm-eval organism hellaswag --limit nan --out OUT
inspect {dir}
inspect nothing
inspect {file}
inspect {forged}
convert {projection} {projection} --out OUT
convert {file} {file} --out OUT
convert nothing.pt nothing.pt --out OUT
convert {activations} {activations} --out OUT
--import nothing_here inspect {editor}
--import nothing.py inspect {editor}
FIT --explained-variance 2
FIT --explained-variance nan
FIT --explained-variance inf
FIT --explained-variance x
FIT --explained-variance 0.9,0.9,0.9
FIT --ranks 0
FIT --ranks 999
FIT --feature-map tanh:1e300 --feature-unit 1
FIT --feature-map tanh:nan
FIT --feature-map tanh:0
FIT --feature-map nothing
FIT --feature-map tanh:1:2
FIT --feature-unit 0
FIT --spectrum x
FIT --layers 7
FIT --n 0
FIT --n 99999
FIT --template x
FIT --answer-ending
fit nothing organism {demos} --out OUT
fit sea
fit sea organism --out OUT
fit sea --activations nothing --out OUT
fit sea --activations {file} --out OUT
fit sea --activations {frozen} --out OUT
fit sea --activations {editor} --out OUT
fit sea organism {demos} --out {file}
fit iti organism {demos} --n-heads 0 --out OUT
fit iti organism {demos} --alpha nan --out OUT
fit leace organism {demos} --tolerance -1 --out OUT
EFFECTS --seed 9223372036854775808
EFFECTS --seed -1
EFFECTS --seed 1.5
EFFECTS --confidence 1
EFFECTS --confidence 0
EFFECTS --confidence nan
EFFECTS --confidence 95
EFFECTS --control -1
EFFECTS --control x
EFFECTS --effect nothing
EFFECTS --n 0
EFFECTS --n 99999
effects organism {alien} organism --out OUT
effects organism {tall} organism --out OUT
effects organism {forged} organism --out OUT
effects organism {dir} organism --out OUT
effects organism nothing organism --out OUT
effects organism {file} organism --out OUT
effects organism {editor} {empty} --out OUT
effects organism {editor} {editor} --out OUT
effects organism organism {editor} --out OUT
effects organism {editor} organism --out LONG
effects organism {editor} organism --out {file}
ablate organism {editor} organism --mode nothing --out OUT
ablate organism {editor} organism --layer-set 9 --out OUT
ablate organism {editor} organism --layer-set x --out OUT
ablate organism {alien} organism --out OUT
generate organism {alien} x
generate organism nothing x
generate organism {editor}
generate organism {editor} x --max-new-tokens 0
generate organism {editor} x --max-new-tokens 99999999
generate organism {editor} x --temperature -1
generate organism {editor} x --temperature nan
generate organism {editor} x --top-p 0 --temperature 1
generate organism {editor} x --strength nan
generate organism {editor} x --strength inf
generate organism {editor} x --strengths x
generate organism {editor} x --layers 9
generate organism {editor} x --layers 0-99999999999
generate organism {editor} x --chat
generate organism {editor} x --chat-option nothing
probe organism {file} {demos} --out OUT
probe organism {editor} {demos} --n-folds 1 --out OUT
probe organism {editor} {demos} --n-shuffles -1 --out OUT
probe organism {editor} {demos} --regularization 0 --out OUT
probe organism {editor} {demos} --method umap --out OUT
tune sea organism {demos} --strength x --out OUT
tune sea organism {demos} --strength nan --out OUT
tune sea organism {demos} --measure nothing --out OUT
tune sea organism {demos} --max-kl 0 --out OUT
tune sea organism {demos} --max-kl nan --out OUT
tune sea organism {demos} --also nothing --out OUT
tune sea organism {file} --out OUT
tune nothing organism {demos} --out OUT
compare organism nothing --truthfulqa organism --out OUT
compare organism {editor} --out OUT
compare organism {alien} --truthfulqa organism --out OUT
compare organism {editor} --truthfulqa nothing --out OUT
compare organism {editor} --truthfulqa organism --confidence 1 --out OUT
transfer sea organism --out OUT
data-efficiency nothing organism {demos} --out OUT
data-efficiency sea organism {demos} --sizes 0 --truthfulqa organism --out OUT
data-efficiency sea organism {demos} --sizes 99999 --truthfulqa organism --out OUT
data-efficiency sea organism {demos} --seeds -1 --truthfulqa organism --out OUT
spectrum nothing {editor}
""".strip().splitlines()


def words(line, things, out):
    for name, whole in (("COLLECT", COLLECT), ("FIT", FIT), ("EFFECTS", EFFECTS), ("TRUTH", TRUTH)):
        line = line.replace(name, whole)
    found = [word.format_map(things) if "{" in word else word for word in line.split()]
    return ["" if word == "''" else str(out) if word == "OUT" else LONG if word == "LONG" else word for word in found]


def contents(folder):
    return {
        str(path): path.read_bytes() if path.is_file() and os.access(path, os.R_OK) else None
        for path in Path(folder).rglob("*")
    }


def refused(line, things, out):
    """What is wrong with how a line is refused; empty if nothing is."""
    before, started = contents(things["dir"]), time.monotonic()
    code, _, err = run_command(*words(line, things, out))
    lines = err.strip().splitlines()
    flaws = []
    if code != 2:
        flaws.append(f"exit code {code}")
    if not lines or not lines[-1].startswith("error: ") or sum(one.startswith("error:") for one in lines) != 1:
        flaws.append(f"says {err[-300:]!r}")
    elif len(lines[-1]) > 900 or "Traceback" in err or "Error:" in lines[-1][:40]:
        flaws.append(f"words {lines[-1][:200]!r}")
    if contents(things["dir"]) != before:
        flaws.append("changed a file")
    if out.exists() and any(out.rglob("*")):
        flaws.append(f"wrote {[str(path) for path in out.rglob('*')][:3]}")
    if time.monotonic() - started > 30:
        flaws.append("took long")
    return flaws


def test_every_wrong_command_line_is_one_error(things, tmp_path):
    assert len(WRONG[::2]) >= 85  # each takes a tenth of a second; the others are tried before a release
    found = {line: refused(line, things, tmp_path / str(number)) for number, line in enumerate(WRONG[::2])}
    assert {line: flaws for line, flaws in found.items() if flaws} == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_is_write_protected(things):
    code, _, err = run_command(*words("collect organism {demos} --out {frozen}/x", things, ""))
    assert code == 2
    assert_is_one_error(err, "write-protected")


def test_a_card_with_control_sequences_is_printed_harmlessly(tmp_path):
    settings = {FORGED: FORGED}
    card = sl.EditorCard(FORGED, settings, model=None, demonstrations=FORGED, versions={FORGED: FORGED})
    sl.Editor({0: sl.AffineEdit.of_shift(torch.ones(8))}, card).save_pretrained(tmp_path)
    code, out, err = run_command("inspect", str(tmp_path))
    assert code == 0
    for sign in ("\x1b", "\r", "\x07", "\u202e"):
        assert sign not in out + err
    assert not any(line.lstrip().startswith("error:") for line in (out + err).splitlines())


AS_A_MODULE = """
import runpy, sys
asked, sys.argv[1:] = sys.argv[1:], []
try:
    runpy.run_module("sea_lens.cli", run_name="__main__", alter_sys=True)
except SystemExit as done:
    assert not done.code, done.code
sys.argv[1:] = asked
runpy.run_module("sea_lens.cli", run_name="__main__", alter_sys=True)
"""


def test_a_real_process_prints_the_help_and_says_one_line(things, tmp_path):
    """As `python -m sea_lens.cli`, alone and then with a wrong command line: one start for both."""
    ran = subprocess.run(
        [sys.executable, "-c", AS_A_MODULE, *words("inspect {forged}", things, tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "80", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert ran.returncode == 2
    assert ran.stdout.startswith("Usage: sea-lens [OPTIONS] COMMAND")
    assert_is_one_error(ran.stderr, "forged")

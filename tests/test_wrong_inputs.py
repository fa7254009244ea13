"""Wrong inputs of every public function and class: each is one of our own errors, and none is taken for a right one."""

import math
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import with_few_tasks

import sea_lens as sl
from sea_lens import errors

OURS = tuple(kind for kind in vars(errors).values() if isinstance(kind, type) and not issubclass(kind, Warning))
NAN = math.nan

# What is wrong wherever a parameter of this name stands. Every function of the package spells them alike.
SMALL = [0, -1, 2.5, True, "8", None, [1]]
FLAG = ["yes", 1, None]
WRONG = {
    "batch_size": SMALL,
    "max_new_tokens": SMALL,
    "k": SMALL,
    "n_folds": [1, *SMALL],
    "n_shuffles": [-1, 2.5, True, "8", None],
    "save_every": SMALL,
    "seed": [-1, 2**70, 1.5, "a", True, None],
    "seeds": [3, "abc", [1.5], [-1], [True], [], None],
    "sizes": [3, "abc", [0], [2.5], [10**9], [True], []],
    "confidence": [0, 1, 1.5, -0.5, NAN, "0.95", True, None, 95],
    "control": [-1, 2.5, "3", None, [1], ["editor"]],
    "folder": [3, b"x", ["a"]],
    "progress": FLAG,
    "share_prefix": FLAG,
    "per_token": FLAG,
    "damage": FLAG,
    "lens": ["nothing", 3, None],
    "answer": [3, None, ["a"]],
    "best_only": FLAG,
    "chat": FLAG,
    "all_unknown_answers": FLAG,
    "less_is_better": ["no", 1],
    "with_knowledge": FLAG,
    "questions": [None, "q.jsonl", Path("q.jsonl"), ["a", "b"], [], 3, {"prompt": "a"}, "EDITOR", "MODEL"],
    "held_out": [None, "q.jsonl", ["a"], [], 3, "EDITOR"],
    "editor": [None, "folder", Path("folder"), 3, [1], {}, "QUESTIONS", "ACTIVATIONS"],
    "facts": [None, "facts.jsonl", [], ["a"], 3, {"a": 1}, "EDITOR", "QUESTIONS"],
    "at_once": SMALL,
    "sha256": [3, "00"],
    "demonstrations": [None, "d.jsonl", Path("d.jsonl"), ["a"], [], 3, "QUESTIONS"],
    "activations": [None, "a.safetensors", 3, {}, "EDITOR", "QUESTIONS", "TENSOR"],
    "layers": [3, "0", [99], [1.5], ["x"], [None], [True], [], {}, [-99], [3, "blocks.3.hook_resid_pose"]],
    "layer": [99, 1.5, None, "x", True, [1], -99],
    "token": ["first", 1.5, None, True, [1], 99],
    "site": ["resid_poste", 3, None, [], "", ["resid_post", 3]],
    "effects": ["kl", [], ["nothing"], [3], 3, [lambda: 0]],
    "effect": ["nothing", 3, None, ["accuracy"], lambda: 0],
    "modes": ["only", [], ["nothing"], [3], 3],
    "layer_sets": [3, "ab", [3], [[99]], [["x"]], [[]]],
    "measure": ["nothing", 3, None],
    "methods": [[], 3, "sea", [3], ["sea"], [sl.SEA]],
    "method": [3, "sea", None, sl.SEA],
    "strengths": [[], [NAN], ["x"], 3, "abc", [math.inf], [True], None],
    "texts": [[], "", [""], [3], 3, [None], {"a": 1}],
    "prompts": [3, [3], "", [None], {"a": 1}],
    "neutral_texts": [3, [3], [], [""]],
    "prompt": [3, ["a"], "nothing"],
    "examples": [-1, 2.5, "3", True, None],
    "limits": [3, "1", 0.5],
    "context_length": [0, -1, 2.5, "8", True, 10**9],
    "stride": [0, -1, 2.5, "8", True, 10**9],
    "dtype": ["float99", 3, torch.int32, "float32", None],
    "explained_variance": [0, -1, 1.5, NAN, "0.9", True, (0.9,), (0.9, 2), [0.5, 0.5, 0.5], {}],
    "groups": [3, [1], "ab", []],
    "regularization": [0, -1, NAN, math.inf, "1", True, None],
    "edited": [3, "EDITOR", "a.safetensors"],
    "magnitude": [0, -1, NAN, "1", True, None],
    "ratio": [0, -1, NAN, "1", True, None],
    "max_layers": [0, -1, 2.5, "3", True, 99],
    "feature_unit": [0, -1, NAN, "mean", True, None],
    "feature_map": ["tanh", 3, sl.Tanh],
    "editors": [{}, [], None, "EDITOR", {"a": 3}, {3: "EDITOR"}, {"a": "no-folder-here"}],
    "benchmarks": [{}, [], None, {"truthfulqa": 3}, {"nothing": "QUESTIONS"}, {"truthfulqa": "q.jsonl"}, "truthfulqa"],
    "benchmark": [None, "truthfulqa", 3, "QUESTIONS"],
    "sources": [{}, [], None, {"a": 3}, "EDITOR", {"a": "folder"}],
    "match": ["nothing", 3, None],
    "context": ["nothing", 3, None],
    "scored_by": ["nothing", 3, None],
    "stop": [3, [3], [""], {"a": 1}],
    "tasks": [[], "", 3, [3], ["no_such_task_here"]],
    "num_fewshot": [-1, 2.5, "3", True],
    "limit": [0, -1, NAN, math.inf, "3", True],
    "factor": [NAN, math.inf, "1", None, True, [1]],
    "positions": ["abc", 1.5, True, [], [1.5], ["a"], torch.ones(2, 3) * 0.5, {}, NAN],
    "condition": [None, "x", 3, "EDITOR"],
    "n": [0, -1, 2.5, "3", True, 10**9],
    "fraction": [0, 1, -0.5, 1.5, NAN, "0.5", True, None],
    "template": [3, None, "no place", "{"],
    "ending": [3, None, [1]],
    "system": [3, ["a"]],
    "path": [None, 3, "no-such-file-here.jsonl", "/", b"x"],
    "temperature": [-1, NAN, "0", True, None],
    "shrinkage": FLAG,
    "center": ["x", 1, None],
    "normalize": FLAG,
    "tolerance": [-1, 0, NAN, "0", True, None],
    "ranks": [0, -1, 2.5, "3", True, (1,), (1, 2, 3), (0, 0), (1.5, 2)],
    "spectrum": ["nothing", 3, None],
    "projections": ["nothing", 3, None],
    "merge": ["nothing", 3, None],
    "merge_space": ["nothing", 3, None],
    "n_heads": [0, -1, 2.5, "3", True, None],
    "alpha": [NAN, math.inf, "1", True, None],
    "d_head": [0, -1, 2.5, "3", True],
    "folds": [1, 0, 2.5, "3", True, None],
    "scale": [0, NAN, math.inf, "1", True, None],
    "length_scale": [0, NAN, math.inf, "1", True, None],
    "kl": [0, -1, NAN, "1", True, None],
    "perplexity_ratio": [0, -1, NAN, "1", True, None],
    "repetition": [-1, NAN, "1", True, None, 2],
    "max_kl": [0, -1, NAN, "1", True],
    "length": ["long", 3, None],
    "variant": ["nothing", 3, None],
    "operation": ["nothing", 3, None],
    "of": ["nothing", 3, None],
    "source": ["last", 1.5, True],
    "at": [(), ("attn.hook_z",), ["resid_post", 3], 3, None],
    "rank": [0, -1, 2.5, "3", True],
    "ridge": [0, -1, NAN, "1", True, None],
    "most": [0.5, -1, NAN, "1", True],
    "aperture": [0, -1, NAN, math.inf, "1", True, None],
    "beta": [NAN, math.inf, "1", True, None],
    "restore_norm": FLAG,
    "switch": FLAG,
    "clip": FLAG,
    "trials": SMALL,
    "shuffles": [-1, 2.5, "3", True, None],
    "fitting_questions": [None, "q.jsonl", ["a", "b"], [], 3, "EDITOR", "MODEL"],
    "held_out_questions": [None, "q.jsonl", ["a", "b"], [], 3, "EDITOR", "MODEL"],
}

DROPPED = {  # names under which a value is right where it stands
    "evaluate_perplexity": {"editor": [None], "texts": []},
    "evaluate_truthfulqa": {"editor": [None]},
    "evaluate_bbq": {"editor": [None]},
    "evaluate_crows_pairs": {"editor": [None]},
    "evaluate_knowledge": {"editor": [None]},
    "evaluate_lm_eval": {"editor": [None]},
    "generate_answers": {"editor": [None]},
    "massive_activations": {"editor": [None]},
    "read_directions": {"activations": [None]},
    "collect_activations": {"editor": [None], "site": [["resid_post", 3]]},
    "collect_statistics": {"editor": [None]},
    "measure_damage": {"prompts": [], "texts": [[], [""]]},
    "massive_tokens": {"texts": [[""]]},
    "generate": {"prompt": ["nothing", ["a"]]},
    "view_tokens": {"prompt": ["nothing"]},
    "editor.without_layers": {"layers": [[], {}]},
    "transfer": {"method": [sl.SEA]},
    "tune": {"layers": ["0"]},
    "compare_methods": {"layers": ["0"], "methods": [["sea"]]},
}


class World:
    """Right arguments, as few and as small as can be."""

    def __init__(self, model, world, folder):
        self.model = model
        self.questions = world.questions()[:3]
        self.fitting = world.questions(world.fitting)[4:7]
        self.demonstrations = world.demonstrations()[:4]
        neutral = [row.positive for row in self.demonstrations]
        rows = zip(*[(row.prompt, row.positive, row.negative) for row in self.demonstrations], strict=True)
        self.demonstrations = sl.Demonstrations.from_lists(*map(list, rows), neutral)
        width = model.cfg.d_model
        generator = torch.Generator().manual_seed(0)
        sides = {name: {2: torch.randn(8, width, generator=generator)} for name in ("positive", "negative", "neutral")}
        self.activations = sl.Activations.from_tensors(**sides)
        self.editor = sl.MeanDifference().fit(self.activations)
        self.tensor = torch.ones(8, width)
        self.file = folder / "d.jsonl"
        self.demonstrations.to_jsonl(self.file)
        self.frame = pd.DataFrame({"prompt": ["a"], "positive": ["b"], "negative": ["c"]})
        self.csv = folder / "d.csv"
        self.frame.to_csv(self.csv, index=False)
        self.folder = folder

    def thing(self, value):
        """Names in capitals stand for things."""
        things = {
            "EDITOR": self.editor,
            "QUESTIONS": self.questions,
            "MODEL": self.model,
            "ACTIVATIONS": self.activations,
            "TENSOR": self.tensor,
        }
        if isinstance(value, dict):
            return {key: self.thing(one) for key, one in value.items()}
        return things.get(value, value) if isinstance(value, str) else value

    def calls(self):
        """By name: a function and arguments that it takes."""
        m, q, d, a, e = self.model, self.questions, self.demonstrations, self.activations, self.editor
        scored = {"questions": q, "editor": e, "progress": False, "batch_size": 8, "confidence": 0.95, "seed": 0}
        scored |= {"folder": None}
        measured = {**scored, "effect": "accuracy"}
        methods = [sl.MeanDifference()]
        yield "measure_effects", {"model": m, **scored, "effects": ["accuracy"], "control": 0}
        yield "ablate_layers", {"model": m, **measured, "modes": ["only"], "layer_sets": (), "control": 0}
        yield "measure_interactions", {"model": m, **measured}
        yield "select_layers", {"model": m, **measured, "held_out": q, "less_is_better": None, "max_layers": None}
        yield "evaluate_truthfulqa", {"model": m, **scored, "prompt": None}
        yield (
            "evaluate_bbq",
            {"model": m, **scored, "context": "both", "scored_by": "sum", "all_unknown_answers": False},
        )
        yield "evaluate_crows_pairs", {"model": m, **scored}
        facts = {"facts": [sl.FactEdit("Bram", "Q {} job A", "clerk", "baker")]}
        edited = {**{k: v for k, v in scored.items() if k != "questions"}, **facts}
        yield "evaluate_knowledge", {"model": m, **edited}
        del edited["editor"]
        yield "evaluate_edits", {"model": m, **edited, "fit": lambda own: e, "at_once": 1, "damage": False}
        texts = {"texts": ["A b c.", "D e f."], "context_length": 8, "stride": 4}
        yield "evaluate_perplexity", {"model": m, **{k: v for k, v in scored.items() if k != "questions"}, **texts}
        yield "generate_answers", {"model": m, **scored, "max_new_tokens": 2, "stop": None}
        lm_eval = {"tasks": ["no_such_task_here"], "num_fewshot": None, "limit": None, "chat": False}
        yield "evaluate_lm_eval", {"model": m, **{k: v for k, v in scored.items() if k != "questions"}, **lm_eval}
        yield "answer_greedily", {"model": m, "questions": q, "max_new_tokens": 2, "match": "contains", "batch_size": 8}
        prefer = {"per_token": True, "best_only": False, "batch_size": 8, "progress": False}
        yield "prefer_right", {"model": m, "questions": q, **prefer}
        collected = {"demonstrations": d, "layers": [1], "token": "last", "site": "resid_post", "batch_size": 8}
        collected |= {"folder": None, "editor": None, "share_prefix": True, "progress": False}
        yield "collect_activations", {"model": m, **collected}
        streamed = {"save_every": 4, "feature_map": None, "feature_unit": 1.0}
        yield "collect_statistics", {"model": m, **collected, **streamed}
        compared = {"benchmarks": {"truthfulqa": q}, "folder": None, "progress": False}
        yield "compare", {"model": m, "editors": {"one": e}, **compared}
        yield "transfer", {"model": m, "sources": {"one": e}, "method": methods[0], **compared}
        more = {"sizes": [4], "seeds": [0], "confidence": 0.95, "folder": None, "progress": False}
        benchmark = _prefers
        yield "data_efficiency", {"model": m, "activations": a, "benchmark": benchmark, "method": methods[0], **more}
        tuned = {
            "methods": methods,
            "layers": None,
            "strengths": [1.0],
            "measure": "preference",
            "neutral_texts": ["A b."],
        }
        tuned |= {"max_new_tokens": 2, "batch_size": 8, "folder": None, "progress": False}
        yield "tune", {"model": m, "activations": a, "questions": q, **tuned}
        halves = {"demonstrations": d, "fitting_questions": self.fitting, "held_out_questions": q}
        tried = {"trials": 1, "measure": "mc1", "max_kl": 1.0, "token": "last", "control": 0, "shuffles": 0, "seed": 0}
        tuned = {
            name: tuned[name] for name in ("methods", "layers", "max_new_tokens", "batch_size", "folder", "progress")
        }
        yield "compare_methods", {"model": m, **halves, **tuned, **tried}
        damage = {"prompts": ["A b"], "texts": ["A b c."], "examples": 0, "max_new_tokens": 2, "batch_size": 8}
        yield "measure_damage", {"model": m, "editor": e, "limits": None, **damage}
        yield "kl_to_unedited", {"model": m, "texts": ["A b."], "editor": e, "batch_size": 8}
        yield "neutral_texts", {"model": m}
        massive = {"magnitude": 100.0, "ratio": 1000.0}
        yield "massive_activations", {"activations": a, "editor": None, **massive}
        yield "massive_tokens", {"model": m, "texts": ["A b."], "site": "resid_post", "batch_size": 8, **massive}
        yield "measure_spectra", {"editor": sl.SEA().fit(a, progress=False), "activations": a}
        probed = {"edited": None, "n_folds": 2, "n_shuffles": 1, "regularization": 1.0, "groups": None, "seed": 0}
        yield "probe_activations", {"activations": a, **probed, "progress": False}
        yield "read_directions", {"model": m, "editor": sl.SEA().fit(a, progress=False), "layer": 2, "k": 2}
        seen = {"answer": "", "k": 2, "lens": "none", "damage": False, "chat_options": None}
        yield "view_tokens", {"model": m, "prompt": "A b", "editor": e, **seen}
        yield "random_editor_like", {"editor": e, "seed": 0}
        yield "refit", {"editor": e, "activations": a}
        yield (
            "fit_sea",
            {"activations": a, "explained_variance": 0.9, "layers": None, "dtype": torch.float32, "progress": False},
        )
        drawn = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 0}
        more = {"stop": (), "system": None, "keep_reasoning": True, "batch_size": 2}
        yield "generate", {"model": m, "prompt": "A b", "max_new_tokens": 2, "editor": None, **drawn, **more}
        # Methods of data, editors and activations.
        yield "editor.scaled", {"factor": 2.0}
        yield "editor.at_layers", {"layers": [2]}
        yield "editor.without_layers", {"layers": []}
        yield "editor.first_layers", {"n": 1}
        yield "editor.last_layers", {"n": 1}
        yield "editor.at_positions", {"positions": 1}
        yield "editor.when", {"condition": sl.WhenAligned(2, self.tensor[0])}
        yield "questions.sample", {"n": 1, "seed": 0}
        yield "questions.split", {"fraction": 0.5, "seed": 0}
        yield "demonstrations.sample", {"n": 1, "seed": 0}
        yield "demonstrations.split", {"fraction": 0.5, "seed": 0}
        yield "demonstrations.with_answer_ending", {"ending": "."}
        yield "demonstrations.with_prompt_template", {"template": "Q: {prompt}"}
        yield "questions.with_prompt_template", {"template": "Q: {prompt}"}
        yield "activations.shuffled", {"seed": 0}
        yield "Demonstrations.from_jsonl", {"path": self.file}
        yield "Demonstrations.from_csv", {"path": self.csv}
        yield "Demonstrations.from_halueval", {"path": self.file}
        yield "Demonstrations.from_bbq", {"path": self.file}
        yield "Questions.from_jsonl", {"path": self.file}
        yield "Questions.from_bbq", {"path": self.file}
        yield "Questions.from_crows_pairs", {"path": self.file}
        yield "Questions.from_truthfulqa", {"path": self.file}
        yield "read_facts", {"source": [{"subject": "a", "prompt": "{}", "target_new": "b"}], "n": 1, "sha256": None}
        yield "Activations.load", {"path": self.file}
        yield "SEAFitter.load", {"path": self.file}
        yield "Editor.from_pretrained", {"pretrained_model_name_or_path": self.folder}
        # Settings of methods, feature maps and limits.
        yield (
            "SEA",
            {"explained_variance": 0.9, "center": True, "spectrum": "squared", "projections": "both"}
            | {
                "merge": "norm",
                "merge_space": "features",
                "feature_map": None,
                "feature_unit": 1.0,
            },
        )
        yield "SEA", {"ranks": 1, "center": False}
        yield "SEA.fit", {"activations": a, "dtype": torch.float32, "progress": False}
        yield "ITI", {"n_heads": 1, "alpha": 1.0, "d_head": 32, "folds": 2, "seed": 0}
        yield "LEACE", {"shrinkage": True, "tolerance": 0.01}
        yield "MeanDifference", {"normalize": False, "length": "unit"}
        yield "PCADifference", {"variant": "pca_diff", "length": "unit", "restore_norm": True}
        yield "ACE", {"alpha": 1.0}
        yield "DirectionalAblation", {"source": 2, "operation": "add", "at": ("resid_pre",)}
        yield "GaussianTransport", {"rank": 1, "ridge": 0.1, "most": 2.0}
        yield "MidSteer", {"switch": True, "shrinkage": True, "clip": False}
        yield "ConceptorSteering", {"aperture": 1.0, "beta": 1.0, "of": "positive", "restore_norm": True}
        yield "MeanDifference.fit", {"activations": a}
        yield "LEACE.fit", {"activations": a}
        yield "ITI.fit", {"activations": a, "progress": False}
        yield "ELU", {"alpha": 1.0}
        yield "Tanh", {"scale": 1.0}
        yield "SquaredExponential", {"length_scale": 1.0}
        yield "DamageLimits", {"kl": 1.0, "perplexity_ratio": 2.0, "repetition": 0.5}
        yield "SEAFitter", {"feature_map": None, "feature_unit": 1.0}

    def function(self, name):
        """`evaluate_bbq`, `Questions.from_bbq`, or a method of a thing, such as `editor.scaled`."""
        first, _, rest = name.partition(".")
        owner = getattr(self, first) if hasattr(self, first) else getattr(sl, first)
        if rest == "fit":
            owner = owner()
        return getattr(owner, rest) if rest else owner


def _prefers(model, editor=None, **_):
    raise AssertionError("ran")


def cases(world):
    """Every wrong argument in turn: (what, thunk)."""
    for name, arguments in world.calls():
        for argument in arguments:
            right = DROPPED.get(name, {}).get(argument, [])
            for value in WRONG.get(argument, ()):
                if any(type(value) is type(one) and value == one for one in right):
                    continue
                given = world.thing(value)
                if type(given) is type(arguments[argument]) and given is arguments[argument]:
                    continue
                said = f"{name}({argument}={value!r})"
                yield said, lambda name=name, given={**arguments, argument: given}: world.function(name)(**given)
    yield from by_hand(world)


def by_hand(w):
    """What has no common name."""
    e, q, d, a, m = w.editor, w.questions, w.demonstrations, w.activations, w.model
    t = w.tensor
    lists = sl.Demonstrations.from_lists
    asked = sl.Questions.from_lists
    tensors = sl.Activations.from_tensors
    site = sl.Site
    edit = sl.AffineEdit
    eigen = edit.of_eigenvalues
    q2 = torch.linalg.qr(torch.randn(8, 2)).Q
    table = {
        "load_model(3)": lambda: sl.load_model(3),
        "load_model(None)": lambda: sl.load_model(None),
        "load_model('')": lambda: sl.load_model(""),
        "load_model('/no/such')": lambda: sl.load_model("/no/such"),
        "load_model('../../x')": lambda: sl.load_model("../../x"),
        "load_model(organism, dtype float99)": lambda: sl.load_model("organism", dtype="float99"),
        "load_model(organism, dtype 3)": lambda: sl.load_model("organism", dtype=3),
        "load_model(organism, dtype int32)": lambda: sl.load_model("organism", dtype=torch.int32),
        "load_model(organism, device)": lambda: sl.load_model("organism", device="gpu9"),
        "load_model(organism, device None)": lambda: sl.load_model("organism", device=None),
        "load_model(organism, typo)": lambda: sl.load_model("organism", devise="cpu"),
        "load_organism(device)": lambda: sl.load_organism("gpu9"),
        "load_organism(folder)": lambda: sl.load_organism("cpu", w.folder),
        "load_organism(folder 3)": lambda: sl.load_organism("cpu", 3),
        "load_bias_organism(device)": lambda: sl.load_bias_organism(3),
        "load_bias_organism(folder)": lambda: sl.load_bias_organism("cpu", w.folder / "no"),
        "lists: unequal": lambda: lists(["a"], ["b", "c"], ["d"]),
        "lists: text": lambda: lists("ab", "cd", "ef"),
        "lists: None": lambda: lists(None, None, None),
        "lists: numbers": lambda: lists([1], [2], [3]),
        "lists: None inside": lambda: lists(["a"], [None], ["c"]),
        "lists: NaN inside": lambda: lists(["a"], [NAN], ["c"]),
        "lists: empty": lambda: lists([], [], []),
        "lists: nested": lambda: lists([["a"]], [["b"]], [["c"]]),
        "lists: dict": lambda: lists({"a": 1}, {"b": 1}, {"c": 1}),
        "lists: set": lambda: lists({"a", "b"}, {"b", "c"}, {"c", "d"}),
        "lists: same answers": lambda: lists(["a"], ["b"], ["b"]),
        "lists: bytes": lambda: lists([b"a"], [b"b"], [b"c"]),
        "Demonstration(3)": lambda: sl.Demonstration("a", 3, "c"),
        "Demonstration(None)": lambda: sl.Demonstration(None, "b", "c"),
        "Demonstrations(list)": lambda: sl.Demonstrations(["a"]),
        "Demonstrations(empty)": lambda: sl.Demonstrations(()),
        "Demonstrations(3)": lambda: sl.Demonstrations(3),
        "Demonstrations(questions)": lambda: sl.Demonstrations(tuple(q)),
        "Questions(list)": lambda: sl.Questions(["a"]),
        "Questions(demonstrations)": lambda: sl.Questions(tuple(d)),
        "questions: text": lambda: asked("ab", "cd", "ef"),
        "questions: unequal": lambda: asked(["a"], ["b", "c"], ["d"]),
        "questions: None": lambda: asked(None, None, None),
        "questions: numbers": lambda: asked([1], [2], [3]),
        "questions: no right": lambda: asked(["a"], [[]], [["b"]]),
        "questions: number answers": lambda: asked(["a"], [[1]], [["b"]]),
        "Question(right text 3)": lambda: sl.Question("a", 3, ("b",)),
        "Question(None)": lambda: sl.Question(None, ("a",), ("b",)),
        "Questions.from_demonstrations(3)": lambda: sl.Questions.from_demonstrations(3),
        "Questions.from_demonstrations(questions)": lambda: sl.Questions.from_demonstrations(q),
        "Questions.from_demonstrations(path)": lambda: sl.Questions.from_demonstrations("d.jsonl"),
        "frame: no column": lambda: sl.Demonstrations.from_dataframe(w.frame, positive="nothing"),
        "frame: list": lambda: sl.Demonstrations.from_dataframe([1]),
        "frame: None": lambda: sl.Demonstrations.from_dataframe(None),
        "frame: path": lambda: sl.Demonstrations.from_dataframe("d.csv"),
        "frame: column 3": lambda: sl.Demonstrations.from_dataframe(w.frame, positive=3),
        "frame: empty": lambda: sl.Demonstrations.from_dataframe(w.frame[:0]),
        "frame: NaN": lambda: sl.Demonstrations.from_dataframe(w.frame.assign(positive=np.nan)),
        "csv: no column": lambda: sl.Demonstrations.from_csv(w.csv, positive="nothing"),
        "jsonl: no column": lambda: sl.Demonstrations.from_jsonl(w.file, positive="nothing"),
        "check(3)": lambda: d.check(3),
        "chat(None)": lambda: d.with_chat_template(None),
        "chat(3)": lambda: d.with_chat_template(3),
        "chat(model without a template)": lambda: d.with_chat_template(m.tokenizer, system=3),
        "neutral(None)": lambda: d.with_neutral_answers(None),
        "neutral(0)": lambda: d.with_neutral_answers(m, 0),
        "neutral(batch)": lambda: d.with_neutral_answers(m, batch_size=0),
        "neutral('8')": lambda: d.with_neutral_answers(m, "8"),
        "to_jsonl(3)": lambda: d.to_jsonl(3),
        "to_jsonl(folder)": lambda: d.to_jsonl(w.folder),
        "to_jsonl(/)": lambda: d.to_jsonl("/"),
        "write_facts(/)": lambda: sl.write_facts([sl.FactEdit("a", "{}", "b")], "/"),
        "write_facts([])": lambda: sl.write_facts([], "facts.jsonl"),
        "tensors: lists": lambda: tensors(positive={0: [1.0]}, negative={0: [1.0]}),
        "tensors: a tensor": lambda: tensors(positive=t, negative=t),
        "tensors: None": lambda: tensors(positive=None, negative=None),
        "tensors: empty": lambda: tensors(positive={}, negative={}),
        "tensors: no rows": lambda: tensors(positive={0: t[:0]}, negative={0: t[:0]}),
        "tensors: unequal": lambda: tensors(positive={0: t}, negative={0: t[:2]}),
        "tensors: other layers": lambda: tensors(positive={0: t}, negative={1: t}),
        "tensors: NaN": lambda: tensors(positive={0: t * NAN}, negative={0: t}),
        "tensors: infinite": lambda: tensors(positive={0: t * math.inf}, negative={0: t}),
        "tensors: 1-d": lambda: tensors(positive={0: t[0]}, negative={0: t[0]}),
        "tensors: 3-d": lambda: tensors(positive={0: t[None]}, negative={0: t[None]}),
        "tensors: integers": lambda: tensors(positive={0: t.long()}, negative={0: t.long()}),
        "tensors: complex": lambda: tensors(positive={0: t.cfloat()}, negative={0: t.cfloat()}),
        "tensors: bool": lambda: tensors(positive={0: t.bool()}, negative={0: t.bool()}),
        "tensors: layer -1": lambda: tensors(positive={-1: t}, negative={-1: t}),
        "tensors: layer 'x'": lambda: tensors(positive={"x": t}, negative={"x": t}),
        "tensors: layer 1.5": lambda: tensors(positive={1.5: t}, negative={1.5: t}),
        "tensors: layer True": lambda: tensors(positive={True: t}, negative={True: t}),
        "tensors: token": lambda: tensors(positive={0: t}, negative={0: t}, token="nothing"),
        "tensors: token 1.5": lambda: tensors(positive={0: t}, negative={0: t}, token=1.5),
        "tensors: model": lambda: tensors(positive={0: t}, negative={0: t}, model="gpt2"),
        "tensors: site": lambda: tensors(positive={0: t}, negative={0: t}, site=3),
        "at_sites(3)": lambda: a.at_sites(3),
        "at_sites([9])": lambda: a.at_sites([9]),
        "at_sites([])": lambda: a.at_sites([]),
        "at_sites([None])": lambda: a.at_sites([None]),
        "activations.save(3)": lambda: a.save(3),
        "Activations(3)": lambda: sl.Activations(3),
        "Activations({})": lambda: sl.Activations({}),
        "Activations({'positive': 3})": lambda: sl.Activations({"positive": 3}),
        "Editor({})": lambda: sl.Editor({}),
        "Editor(None)": lambda: sl.Editor(None),
        "Editor([])": lambda: sl.Editor([]),
        "Editor({0: 1})": lambda: sl.Editor({0: 1}),
        "Editor({0: tensor})": lambda: sl.Editor({0: t}),
        "Editor({-1: edit})": lambda: sl.Editor({-1: edit.of_shift(t[0])}),
        "Editor({'x': edit})": lambda: sl.Editor({"x": edit.of_shift(t[0])}),
        "Editor({1.5: edit})": lambda: sl.Editor({1.5: edit.of_shift(t[0])}),
        "Editor({None: edit})": lambda: sl.Editor({None: edit.of_shift(t[0])}),
        "Editor({True: edit})": lambda: sl.Editor({True: edit.of_shift(t[0])}),
        "Editor(class)": lambda: sl.Editor({0: edit}),
        "Editor(card 3)": lambda: sl.Editor({0: edit.of_shift(t[0])}, 3),
        "Editor(where 3)": lambda: sl.Editor({0: edit.of_shift(t[0])}, None, 3),
        "from_pretrained(None)": lambda: sl.Editor.from_pretrained(None),
        "from_pretrained(3)": lambda: sl.Editor.from_pretrained(3),
        "from_pretrained(no folder)": lambda: sl.Editor.from_pretrained("/no/such/folder"),
        "from_pretrained(empty folder)": lambda: sl.Editor.from_pretrained(w.folder),
        "from_pretrained('')": lambda: sl.Editor.from_pretrained(""),
        "save_pretrained(3)": lambda: e.save_pretrained(3),
        "save_pretrained(a file)": lambda: e.save_pretrained(w.file),
        "attached(None)": lambda: e.attached(None).__enter__(),
        "attached('gpt2')": lambda: e.attached("gpt2").__enter__(),
        "attached(questions)": lambda: e.attached(q).__enter__(),
        "editor.check(3)": lambda: e.check(3),
        "fwd_hooks('gpt2')": lambda: e.fwd_hooks("gpt2"),
        "editor of another model": lambda: sl.Editor({0: edit.of_shift(torch.ones(8))}).attached(m).__enter__(),
        "editor of another layer": lambda: sl.Editor({99: edit.of_shift(t[0])}).attached(m).__enter__(),
        "editor.edits[9]": lambda: e.at_layers([9]),
        "of_shift(3)": lambda: edit.of_shift(3),
        "of_shift(list)": lambda: edit.of_shift([1.0]),
        "of_shift(2-d)": lambda: edit.of_shift(t),
        "of_shift(NaN)": lambda: edit.of_shift(t[0] * NAN),
        "of_shift(empty)": lambda: edit.of_shift(t[0, :0]),
        "of_shift(complex)": lambda: edit.of_shift(t[0].cfloat()),
        "of_shift(integer)": lambda: edit.of_shift(t[0].long()),
        "of_shift(strength 'x')": lambda: edit.of_shift(t[0], "x"),
        "of_shift(strength NaN)": lambda: edit.of_shift(t[0], NAN),
        "of_shift(strength True)": lambda: edit.of_shift(t[0], True),
        "eigen: count": lambda: eigen(q2, torch.ones(3)),
        "eigen: 1-d": lambda: eigen(q2[:, 0], torch.ones(1)),
        "eigen: NaN": lambda: eigen(q2 * NAN, torch.ones(2)),
        "eigen: NaN values": lambda: eigen(q2, torch.ones(2) * NAN),
        "eigen: complex": lambda: eigen(q2.cfloat(), torch.ones(2)),
        "eigen: lists": lambda: eigen([[1.0]], [1.0]),
        "eigen: shift": lambda: eigen(q2, torch.ones(2), torch.ones(3)),
        "eigen: keep 'x'": lambda: eigen(q2, torch.ones(2), keep="x"),
        "eigen: restore 'no'": lambda: eigen(q2, torch.ones(2), restore_norm="no"),
        "AffineEdit: shapes": lambda: edit(q2, torch.ones(7, 2)),
        "AffineEdit: None": lambda: edit(None, None),
        "AffineEdit: center": lambda: edit(q2, q2, torch.ones(3)),
        "AffineEdit: keep NaN": lambda: edit(q2, q2, keep=NAN),
        "edit.scaled('x')": lambda: edit.of_shift(t[0]).scaled("x"),
        "edit.scaled(NaN)": lambda: edit.of_shift(t[0]).scaled(NAN),
        "edit.then(3)": lambda: edit.of_shift(t[0]).then(3),
        "edit.then(width)": lambda: edit.of_shift(t[0]).then(edit.of_shift(torch.ones(3))),
        "edit.cast('float32')": lambda: edit.of_shift(t[0]).cast("float32"),
        "edit.cast(int)": lambda: edit.of_shift(t[0]).cast(torch.int32),
        "WhenAligned(list)": lambda: sl.WhenAligned(0, [1.0]),
        "WhenAligned(zero)": lambda: sl.WhenAligned(0, torch.zeros(3)),
        "WhenAligned(2-d)": lambda: sl.WhenAligned(0, torch.ones(2, 3)),
        "WhenAligned(site)": lambda: sl.WhenAligned(1.5, t[0]),
        "WhenAligned(threshold)": lambda: sl.WhenAligned(0, t[0], "x"),
        "WhenAligned(threshold NaN)": lambda: sl.WhenAligned(0, t[0], NAN),
        "WhenAligned(below)": lambda: sl.WhenAligned(0, t[0], 0.0, "no"),
        "Site('x')": lambda: site("x"),
        "Site(-1)": lambda: site(-1),
        "Site(1.5)": lambda: site(1.5),
        "Site(True)": lambda: site(True),
        "Site(0, 3)": lambda: site(0, 3),
        "Site(0, '')": lambda: site(0, ""),
        "Site.of(None)": lambda: site.of(None),
        "Site.of(1.5)": lambda: site.of(1.5),
        "Site.of(True)": lambda: site.of(True),
        "Site.of([])": lambda: site.of([]),
        "Site.width(3)": lambda: site(0).width(3),
        "Site(9).check(model)": lambda: site(9).check(m),
        "Site(0, x).check(model)": lambda: site(0, "x").check(m),
        "EditorCard(3)": lambda: sl.EditorCard(3),
        "EditorCard(settings)": lambda: sl.EditorCard("a", 3),
        "EditorCard.from_json(3)": lambda: sl.EditorCard.from_json(3),
        "EditorCard.from_json({})": lambda: sl.EditorCard.from_json({}),
        "EditorCard setting": lambda: sl.EditorCard("a", {"x": object()}).to_json(),
        "refit(no method)": lambda: sl.refit(sl.Editor({2: edit.of_shift(t[0])}), a),
        "grid(3)": lambda: sl.grid(3),
        "grid(SEA, x=)": lambda: sl.grid(sl.SEA, nothing=[1]),
        "grid(SEA, 3)": lambda: sl.grid(sl.SEA, center=3),
        "grid(SEA, [])": lambda: sl.grid(sl.SEA, center=[]),
        "grid(SEA, text)": lambda: sl.grid(sl.SEA, spectrum="squared"),
        "fitted_editor(3)": lambda: sl.fitted_editor(3, a, {}),
        "fitted_editor({})": lambda: sl.fitted_editor(sl.SEA(), a, {}),
        "SEA(None)": lambda: sl.SEA(None),
        "fit_sea(x=)": lambda: sl.fit_sea(a, nothing=1),
        "fit_all(3)": lambda: sl.SEA.fit_all(3, a),
        "fit_all(['sea'])": lambda: sl.SEA.fit_all(["sea"], a),
        "fitter.fit() of nothing": lambda: sl.SEAFitter().fit(),
        "fitter.fit(x=)": lambda: sl.SEAFitter().update(a).fit(nothing=1),
        "fitter.fit(3)": lambda: sl.SEAFitter().update(a).fit(3),
        "fitter.update(3)": lambda: sl.SEAFitter().update(3),
        "fitter.update(None)": lambda: sl.SEAFitter().update(None),
        "fitter.update(tensor)": lambda: sl.SEAFitter().update(t),
        "fitter.merge(3)": lambda: sl.SEAFitter().merge(3),
        "fitter.merge(other width)": lambda: (
            sl.SEAFitter()
            .update(a)
            .merge(
                sl.SEAFitter().update(tensors(**{side: {2: t[:, :3]} for side in ("positive", "negative", "neutral")}))
            )
        ),
        "fitter.save(3)": lambda: sl.SEAFitter().update(a).save(3),
        "fitter.load(None)": lambda: sl.SEAFitter.load(None),
        "published(3)": lambda: sl.read_published_editor(3, 3),
        "published(None)": lambda: sl.read_published_editor(None, None),
        "published(no file)": lambda: sl.read_published_editor("no.pt", "no.pt"),
        "published(list)": lambda: sl.read_published_editor([1], [1]),
        "published(2-d)": lambda: sl.read_published_editor(t, t),
        "published(NaN)": lambda: sl.read_published_editor(torch.eye(4)[None] * NAN, torch.eye(4)[None]),
        "published(integers)": lambda: sl.read_published_editor(torch.eye(4).long()[None], torch.eye(4)[None]),
        "published(complex)": lambda: sl.read_published_editor(torch.eye(4).cfloat()[None], torch.eye(4)[None]),
        "published(oblong)": lambda: sl.read_published_editor(torch.ones(1, 4, 3), torch.ones(1, 4, 3)),
        "published(unequal)": lambda: sl.read_published_editor(torch.eye(4)[None], torch.eye(3)[None]),
        "published(empty)": lambda: sl.read_published_editor(torch.ones(0, 4, 4), torch.ones(0, 4, 4)),
        "published(layers 3)": lambda: sl.read_published_editor(torch.eye(4)[None], torch.eye(4)[None], 3),
        "published(layers [9])": lambda: sl.read_published_editor(torch.eye(4)[None], torch.eye(4)[None], [9]),
        "published(layers [])": lambda: sl.read_published_editor(torch.eye(4)[None], torch.eye(4)[None], []),
        "published(layers ['x'])": lambda: sl.read_published_editor(torch.eye(4)[None], torch.eye(4)[None], ["x"]),
        "published(site 3)": lambda: sl.read_published_editor(torch.eye(4)[None], torch.eye(4)[None], site=3),
        "published(site '')": lambda: sl.read_published_editor(torch.eye(4)[None], torch.eye(4)[None], site=""),
        "published(normalization)": lambda: sl.read_published_editor(
            torch.eye(4)[None], torch.eye(4)[None], normalization="nothing"
        ),
        "published(feature)": lambda: sl.read_published_editor(
            torch.eye(4)[None], torch.eye(4)[None], feature_function="nothing"
        ),
        "published(model)": lambda: sl.read_published_editor(torch.eye(4)[None], torch.eye(4)[None], model="gpt2"),
        "register_method(3)": lambda: sl.register_method(3)(sl.SEA),
        "register_method('')": lambda: sl.register_method("")(sl.SEA),
        "register_method('sea')": lambda: sl.register_method("sea")(type("Other", (), {})),
        "register_method(object)": lambda: sl.register_method("new-one")(3),
        "register_edit(3)": lambda: sl.register_edit(3),
        "register_edit('')": lambda: sl.register_edit(""),
        "register_edit(no dataclass)": lambda: sl.register_edit("new")(type("New", (), {})),
        "register_edit(a function)": lambda: sl.register_edit("new")(print),
        "register_value(3)": lambda: sl.register_value(3),
        "register_value(no dataclass)": lambda: sl.register_value("new")(type("New", (), {})),
        "register_effect(lambda)": lambda: sl.register_effect()(lambda: 0),
        "register_effect(3)": lambda: sl.register_effect()(3),
        "register_effect(flag)": lambda: sl.register_effect(is_share="yes"),
        "register_benchmark(3)": lambda: sl.register_benchmark(3),
        "register_benchmark(known)": lambda: sl.register_benchmark("truthfulqa")(print),
        "register_benchmark(reads)": lambda: sl.register_benchmark("new", reads="nothing"),
        "register_benchmark(object)": lambda: sl.register_benchmark("new")(3),
        "kl_to_unedited(text)": lambda: sl.kl_to_unedited(m, "a", e, batch_size=0),
        "generate(None)": lambda: sl.generate(m, None),
        "generate(3)": lambda: sl.generate(m, 3),
        "generate([3])": lambda: sl.generate(m, [3]),
        "generate([])": lambda: sl.generate(m, []),
        "DamageMeter.of(prompts 3)": lambda: sl.DamageMeter.of(m, 3),
        "DamageMeter.of(texts [])": lambda: sl.DamageMeter.of(m, texts=[]),
        "DamageMeter.of(limits)": lambda: sl.DamageMeter.of(m, limits=3),
        "plot(3)": lambda: sl.plotting.plot_effects(3),
        "plot(None)": lambda: sl.plotting.plot_evaluation(None),
    }
    results = ("Ablation", "Comparison", "Damage", "Directions", "Effects", "Evaluation", "Probes", "Spectra", "Tuning")
    for kind in results:
        cls = getattr(sl, kind)
        for value in (None, 3, "/no/such/folder", w.folder, w.file, b"x"):
            table[f"{kind}.load({value!r})"] = lambda cls=cls, value=value: cls.load(value)
    yield from table.items()


def verdict(thunk):
    """`ours`, `bare: ...` or `accepted`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            thunk()
    except OURS as error:
        text = str(error)
        sentences = len(re.findall(r"[.!?](?=\s+[A-Z]|$)", text))
        return "ours" if 0 < len(text) < 600 and sentences <= 4 else f"long: {text[:200]}"
    except Exception as error:
        return f"bare: {type(error).__name__}: {' '.join(str(error).split())[:110]}"
    return "accepted"


@pytest.fixture(scope="module")
def world(organism, tmp_path_factory):
    return World(*organism, tmp_path_factory.mktemp("wrong"))


@pytest.mark.usefixtures("without_type_checks")
def test_every_wrong_input_is_refused_in_our_words(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with_few_tasks(monkeypatch)
    found = {said: verdict(thunk) for said, thunk in cases(world)}
    assert len(found) > 600
    assert {said: what for said, what in found.items() if what != "ours"} == {}
    assert list(tmp_path.iterdir()) == []  # what is refused writes nothing

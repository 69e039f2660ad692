"""Every registered method, on every kind of backbone, keeps every claim of ``tokred.testing``."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tokred
from tokred import BACKBONES, METHODS
from tokred.registry import load_file
from tokred.testing import (
    CLAIMS,
    Case,
    cases,
    check_method,
    compiles_to_one_graph,
    option_variants,
    tiny_models,
    what_it_cannot_run_on_is_refused,
)

ROOT = Path(__file__).resolve().parents[2]
# Of a timm model, the model itself is reduced, so that it is timm's own forward that is compared with.
MODELS = {kind: getattr(backbone, "vit", backbone) for kind, backbone in tiny_models().items()}
CASES = cases(MODELS, with_variants=("class_token",))
CASES += [  # of methods that compare frames, whose options run on clips only
    case
    for case in cases({"umt": MODELS["umt"]}, with_variants=("umt",))
    if METHODS[case.method].needs_frames and case.options
]
REFUSED = [
    case
    for name in METHODS.names()
    for case in (Case(name, MODELS[kind], model_name=kind) for kind in ("umt", "class_token"))
    if not case.runs()
]


def where_options_are_tried(method: str) -> str:
    """A model that the method and all of its options run on: of images, or of clips where it compares frames."""
    return "umt" if METHODS[method].needs_frames else "class_token"


def pairs() -> list:
    """Every claim on every case. Dynamo takes seconds to trace one, so that by default it sees each model with one method here, and
    each method on one model in tests/test_modes.py; the others, options among them, are marked slow."""
    found = []
    for case in CASES:
        traced = not case.options and case.method == "tome"
        for claim in CLAIMS:
            marks = [pytest.mark.slow] if claim is compiles_to_one_graph and not traced else []
            found.append(pytest.param(case, claim, marks=marks, id=f"{case}-{claim.__name__}"))
    return found


@pytest.mark.parametrize(("case", "claim"), pairs())
def test_contract(case, claim):
    claim(case)


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_a_method_is_refused_with_the_reason_where_the_model_has_not_what_it_needs(case):
    what_it_cannot_run_on_is_refused(case)


@pytest.mark.parametrize("case", [case for case in REFUSED if case.new_method().needs_cls], ids=str)
def test_the_refusal_names_the_option_that_runs(case):
    with pytest.raises(ValueError, match="with scores='received' it reads the attention each token receives"):
        tokred.reduce(case.model, case.method)


def test_every_method_is_tried_with_every_option():
    tried = {
        (case.method, *case.options.items())
        for case in CASES
        if case.model_name == where_options_are_tried(case.method)
    }
    assert tried == {(name, *options.items()) for name in METHODS.names() for options in option_variants(METHODS[name])}


def test_every_method_is_tried_on_every_model_or_refused_on_those_of_one_frame():
    expected = {(name, kind) for name in METHODS.names() for kind in MODELS}
    expected -= {(name, kind) for name, kind in expected if METHODS[name].needs_frames and kind not in ("umt", "mini")}
    assert {(case.method, case.model_name) for case in CASES} == expected


# A claim must fail where it does not hold: methods that are wrong in one way each

METHOD = """
import torch
from tokred import METHODS, Assignment, Method

@METHODS.register("wrong")
class Wrong(Method):
    conserves_mass = False

    def assign(self, tokens, attention, keep):
        place = torch.arange(tokens.num).expand(tokens.x_BNC.shape[0], -1)
        {body}

    {more}
"""
FIRST = "return Assignment.select(place[:, :keep], tokens.num)"
WRONG = {
    "schedule_is_obeyed": "return Assignment.select(place[:, :keep - 1], tokens.num)",
    "least_tokens_are_reached": f"{FIRST} if keep > 2 else Assignment.select(place[:, :3], tokens.num)",
    "prefix_is_first_and_untouched": "return Assignment.select(place[:, -keep:], tokens.num)",
    "mass_is_conserved_or_its_loss_declared": "return Assignment((place // 1).clamp_max(keep - 1), keep, mass_BN=place + 1.0)",
    "every_source_is_valid": "return Assignment(place.clamp_max(keep - 2), keep, normalize=False)",
    "samples_are_independent": "return Assignment.select(place[:, :keep].flip(1) if len(place) > 1 else place[:, :keep], tokens.num)",
    "second_call_is_equal": "self.calls = getattr(self, 'calls', 0) + 1; "
    "return Assignment.select(place.roll(-(self.calls % 3), 1)[:, :keep], tokens.num)",
    "one_pass_gives_the_same": f"tokens.x_BNC.mul_(0.5); {FIRST}",
    "bfloat16_is_finite": "return Assignment(place.clamp_max(keep - 1), keep, weight_BN=tokens.sizes() * (float('nan') if "
    "tokens.x_BNC.dtype == torch.bfloat16 else 1))",
    "compiles_to_one_graph": f"torch._dynamo.graph_break(); {FIRST}",
    "meta_device_gives_the_shape": f"place = place + int(tokens.x_BNC.isnan().sum()); {FIRST}",
    "cost_is_what_is_counted": f"tokens.x_BNC @ tokens.x_BNC.mT; {FIRST}",
}
"""By claim: what ``assign`` does, such that this claim does not hold."""


@pytest.fixture
def own_registry(monkeypatch):
    """What a test registers is gone after it."""
    METHODS.names()
    monkeypatch.setattr(METHODS, "_classes", dict(METHODS._classes))
    monkeypatch.setattr(METHODS, "broken", dict(METHODS.broken))


def plugin(path: Path, body: str, more: str = "") -> Path:
    path.write_text(METHOD.format(body=body, more=more))
    return path


@pytest.mark.parametrize(
    "claim", [claim for claim in CLAIMS if claim.__name__ in WRONG], ids=lambda claim: claim.__name__
)
def test_a_claim_fails_for_a_method_that_breaks_it(claim, tmp_path, own_registry):
    load_file(plugin(tmp_path / f"wrong_{claim.__name__}.py", WRONG[claim.__name__]))
    # of the kinds of error a claim may come as, AssertionError is ours; dynamo and the meta device raise their own
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError, torch._dynamo.exc.Unsupported)):
        claim(Case("wrong", MODELS["class_token"]))


def test_check_method_names_the_claim_that_failed(tmp_path, own_registry):
    load_file(plugin(tmp_path / "wrong_schedule.py", WRONG["schedule_is_obeyed"]))
    with pytest.raises(
        AssertionError, match=r"wrong-VisionTransformer: schedule_is_obeyed: \(13, 13, 10\) tokens left"
    ):
        check_method("wrong", MODELS["class_token"])


# New plugins are found without an edit of any other file


def test_a_new_file_among_the_methods_is_found_and_checked(tmp_path, own_registry, monkeypatch):
    plugin(tmp_path / "newcomer.py", FIRST)
    monkeypatch.setattr("tokred.methods.__path__", [*sys.modules["tokred.methods"].__path__, str(tmp_path)])
    monkeypatch.setattr(METHODS, "_loaded", False)
    assert "wrong" in tokred.list_methods()
    assert METHODS["wrong"].__module__ == "tokred.methods.newcomer"
    found = [case for case in cases(MODELS) if case.method == "wrong"]
    assert [case.model_name for case in found] == list(MODELS)
    check_method("wrong", MODELS["mean"])


PACKAGE = """
import torch
import tokred
from tokred import Assignment, Method, VideoTransformer

class FirstTokens(Method):
    conserves_mass = False

    def assign(self, tokens, attention, keep):
        place = torch.arange(keep).expand(tokens.x_BNC.shape[0], -1)
        return Assignment.select(place, tokens.num)

class OtherVideo(VideoTransformer):
    @classmethod
    def names(cls):
        return ["other_video"]

    @classmethod
    def build(cls, name, *, weights=None, **sizes):
        return cls(**sizes)
"""
ENTRY_POINTS = """
[tokred.methods]
first_tokens = other_package:FirstTokens
not_there = other_package:Nothing

[tokred.backbones]
other_video = other_package:OtherVideo
raises = other_package.raises:Video
"""
ASK = """
import json
import tokred
from tokred.testing import check_method

video = tokred.create_backbone("other_video", num_frames=2, img_size=32, embed_dim=24, depth=3, num_heads=3)
check_method("first_tokens", video)
print(json.dumps({
    "methods": tokred.list_methods(), "backbones": tokred.list_backbones("*umt*") + tokred.list_backbones("other*"),
    "broken": tokred.METHODS.broken | tokred.BACKBONES.broken,
    "tokens": tokred.reduce(video, "tome", r=2).schedule.tokens,
}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict:
    """What an interpreter finds where another package is installed that has plugins, two of them broken."""
    site = tmp_path_factory.mktemp("site")
    package, info = site / "other_package", site / "other_package-1.0.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text(PACKAGE)
    (package / "raises.py").write_text("raise RuntimeError('no such library')\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(site)]), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", ASK], cwd=site, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_a_method_of_another_installed_package_is_found_and_keeps_the_contract(installed):
    assert "first_tokens" in installed["methods"]


def test_a_backbone_of_another_installed_package_is_found_and_reduced(installed):
    assert "other_video" in installed["backbones"]
    assert installed["tokens"] == [6, 4, 2]  # 8 tokens; 2 go in each layer


def test_a_broken_plugin_is_listed_with_its_error(installed):
    assert installed["broken"] == {
        "not_there (other_package:Nothing)": "AttributeError: module 'other_package' has no attribute 'Nothing'",
        "raises (other_package.raises:Video)": "RuntimeError: no such library",
    }


def test_a_broken_plugin_leaves_the_others_as_they_are(installed):
    assert set(METHODS.names()) | {"first_tokens"} == set(installed["methods"])
    assert "umt_base_patch16_224" in installed["backbones"]
    assert not METHODS.broken and not BACKBONES.broken

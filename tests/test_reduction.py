"""The loop in which a method meets a backbone, and everything ``reduce`` may be asked."""

from dataclasses import replace
from typing import ClassVar, Literal

import pytest
import timm
import torch
from torch import nn

import tokred
from tokred import Assignment, Method, Schedule
from tokred.reduction import ReducedModel, create_method, method_options, plan_schedule
from tokred.testing import tiny_models

MODELS = tiny_models()
VIT = MODELS["class_token"]  # 17 tokens, 3 layers
X = torch.randn(2, *VIT.sample_shape, generator=torch.Generator().manual_seed(0))


class First(Method):
    """Keeps the first tokens, and notes what it was given."""

    conserves_mass = False

    def __init__(self, site: str = "after_attention", statistics: tuple[str, ...] = ()):
        super().__init__()
        self.site, self.statistics, self.seen = site, statistics, []

    def assign(self, tokens, attention, keep):
        self.seen.append((tokens, attention, keep))
        place = torch.arange(keep).expand(tokens.x_BNC.shape[0], -1)
        return Assignment.select(place, tokens.num)


# The loop


def by_hand(site: str, layer: int, keep: int) -> torch.Tensor:
    """The backbone, written out, with the first tokens kept at one site of one layer."""
    tokens = VIT.embed(X)
    for now in range(VIT.depth):
        here = site if now == layer else None
        if here in ("input", "before_attention"):
            tokens = replace(tokens, x_BNC=tokens.x_BNC[:, :keep])
        tokens, _ = VIT.attend(now, tokens)
        if here == "after_attention":
            tokens = replace(tokens, x_BNC=tokens.x_BNC[:, :keep])
        tokens = VIT.feedforward(now, tokens)
        if here in ("after_mlp", "output"):
            tokens = replace(tokens, x_BNC=tokens.x_BNC[:, :keep])
    return VIT.head(tokens)


@pytest.mark.parametrize(
    ("site", "layer"), [("input", 0), ("before_attention", 1), ("after_attention", 1), ("after_mlp", 1), ("output", 2)]
)
def test_a_method_works_at_its_site(site, layer):
    r = [0, 0, 0]
    r[layer] = 6
    reduced = tokred.reduce(VIT, First(site), r=r)
    with torch.no_grad():
        assert torch.allclose(reduced(X), by_hand(site, layer, 11), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("site", "layer"), [("input", 0), ("output", 2)])
def test_a_number_is_for_the_one_layer_where_a_method_works_once(site, layer):
    assert tokred.reduce(VIT, First(site), r=6).schedule.reducing_layers == (layer,)


def test_a_budget_is_spent_at_the_input_by_a_method_that_works_there():
    by_number = tokred.reduce(VIT, First("input"), r=6)
    share = by_number.cost().macs / by_number.unreduced_cost().macs
    assert tokred.reduce(VIT, First("input"), budget=share).schedule.tokens == by_number.schedule.tokens


def test_a_method_that_works_once_is_refused_elsewhere():
    with pytest.raises(ValueError, match=r"works at the input only: layer 0; got \(1,\)"):
        tokred.reduce(VIT, First("input"), r=[0, 3])


@pytest.mark.parametrize("site", ["input", "before_attention"])
def test_before_attention_there_is_no_attention_to_read(site):
    method = First(site)
    tokred.reduce(VIT, method, r=[3])(X)
    assert method.seen[0][1] is None


def test_a_method_gets_the_statistics_it_named_and_no_others():
    method = First(statistics=("received",))
    tokred.reduce(VIT, method, r=[3])(X)
    assert list(method.seen[0][1].found) == ["received"]


def test_statistics_are_computed_only_in_layers_that_reduce(monkeypatch):
    asked, attend = [], VIT.attend
    monkeypatch.setattr(VIT, "attend", lambda *a, **k: asked.append(k["statistics"]) or attend(*a, **k))
    tokred.reduce(VIT, First(statistics=("received",)), r=[0, 3, 0])(X)
    assert asked == [(), ("received",), ()]


@pytest.mark.parametrize("proportional", [False, True])
def test_log_sizes_are_added_to_attention_where_the_method_says_so(proportional, monkeypatch):
    biases, attend = [], VIT.attend
    monkeypatch.setattr(
        VIT, "attend", lambda layer, tokens, bias=None, **k: biases.append(bias) or attend(layer, tokens, bias, **k)
    )
    tokred.reduce(VIT, "tome", r=3, proportional_attention=proportional)(X)
    assert [bias is not None for bias in biases] == [False, proportional, proportional]


def test_only_random_methods_draw_a_key():
    method = First()
    tokred.reduce(VIT, method, r=[3])(X)
    assert method.seen[0][0].key_B is None


def test_a_random_method_reduces_a_sample_alike_in_any_batch():
    reduced = tokred.reduce(VIT, "random_drop", r=4)
    other = torch.cat([torch.randn_like(X), X[1:]])
    assert torch.equal(reduced.trace(X).source_BM[-1][1], reduced.trace(other).source_BM[-1][2])


def test_a_random_method_reduces_samples_differently():
    source_BM = tokred.reduce(VIT, "random_drop", r=4).trace(X).source_BM[-1]
    assert not torch.equal(source_BM[0], source_BM[1])


@pytest.mark.parametrize("method", ["random_drop", "random_merge"])
def test_another_seed_gives_another_draw(method):
    one, two = (tokred.reduce(VIT, method, r=4, seed=seed).trace(X).source_BM[-1] for seed in (0, 1))
    assert not torch.equal(one, two)


def test_random_drop_drops_each_token_equally_often():
    images = torch.randn(600, *VIT.sample_shape, generator=torch.Generator().manual_seed(1))
    tokens = replace(VIT.embed(images), key_B=tokred.matching.sample_key(images)).traced()
    dropped = (create_method("random_drop").reduce(tokens, None, 9).source_BM < 0).double().mean(0)
    assert dropped[0] == 0
    assert (dropped[1:] - 0.5).abs().max() < 5 * 0.5 / 600**0.5  # 5 standard deviations


def test_random_merge_spreads_tokens_over_all_that_stay():
    images = torch.randn(600, *VIT.sample_shape, generator=torch.Generator().manual_seed(1))
    tokens = replace(VIT.embed(images), key_B=tokred.matching.sample_key(images))
    sizes = create_method("random_merge").reduce(tokens, None, 9).sizes()
    assert (sizes[:, 0] == 1).all()
    # 8 tokens each join one of 8 with equal chance: 1 + 8/8 on average; 5 standard deviations of that mean
    assert (sizes[:, 1:].mean(0) - 2).abs().max() < 5 * (8 * 1 / 8 * 7 / 8 / 600) ** 0.5


def test_random_drop_keeps_the_order_of_the_input():
    source_BM = tokred.reduce(VIT, "random_drop", r=4).trace(X).source_BM[-1]
    kept = [row[row >= 0].tolist() for row in source_BM]
    assert kept == [sorted(row) for row in kept]


# What comes out


def test_trace_tells_tokens_sources_and_sizes_of_each_layer():
    trace = tokred.reduce(VIT, "tome", r=[4, 0, 2]).trace(X)
    assert trace.tokens == (13, 13, 11)
    assert [source.shape for source in trace.source_BM] == [(2, 17)] * 3
    assert [size.shape for size in trace.size_BN] == [(2, 13), (2, 13), (2, 11)]
    sizes = [torch.bincount(row, minlength=11) for row in trace.source_BM[-1]]
    assert torch.equal(trace.size_BN[-1], torch.stack(sizes).float())


def test_trace_gives_the_output_of_a_plain_call():
    reduced = tokred.reduce(VIT, "vid_tldr", r=[4, 0, 2])
    assert torch.equal(reduced.trace(X).logits, reduced(X))


def test_forward_features_are_the_tokens_after_the_final_norm():
    reduced = tokred.reduce(VIT, "tome", r=[4])
    with torch.no_grad():
        assert torch.equal(reduced.forward_features(X), VIT.vit.norm(reduced.run(X).x_BNC))


def test_without_an_amount_nothing_is_removed():
    assert tokred.reduce(VIT, "tome").schedule.tokens == (17, 17, 17)


def test_the_mode_is_that_of_the_model():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=1, num_heads=3)
    assert tokred.reduce(model.train(), "tome").training
    assert not tokred.reduce(model.eval(), "tome").training


def test_a_part_of_the_model_that_is_frozen_in_evaluation_mode_stays_so():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=1, num_heads=3).train()
    model.norm.eval()
    tokred.reduce(model, "tome")
    assert model.training and not model.norm.training


def test_the_reduced_model_is_put_in_another_mode_as_a_whole():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=1, num_heads=3).train()
    reduced = tokred.reduce(model, "tome").eval()
    assert not any(module.training for module in reduced.modules())


# What is refused


def test_two_amounts_are_refused():
    with pytest.raises(ValueError, match="give one of r, keep_rate, tokens and budget; got r and budget"):
        tokred.reduce(VIT, "tome", r=3, budget=0.5)


@pytest.mark.parametrize("asked", [{"r": 3}, {"tokens": [9, 9, 9]}, {}])
def test_layers_without_a_rate_or_a_budget_are_refused(asked):
    with pytest.raises(ValueError, match="layers goes with keep_rate or budget; for r give one number for each layer"):
        tokred.reduce(VIT, "tome", layers=[1], **asked)


def test_a_reduced_model_is_not_reduced_again():
    with pytest.raises(ValueError, match="the model is reduced already; reduce the model it was made from"):
        tokred.reduce(tokred.reduce(VIT, "tome", r=1), "tome", r=1)


def test_a_model_that_no_backbone_knows_is_refused_with_the_families():
    with pytest.raises(
        ValueError,
        match="no backbone family can cut a Sequential between attention and MLP; there are hf_video, mini, mini_umt, timm_vit, umt",
    ):
        tokred.reduce(nn.Sequential(nn.Linear(2, 2)), "tome", r=1)


def test_a_schedule_for_another_model_is_refused():
    plan = Schedule(17, (17, 17), (17, 17), "by hand")
    with pytest.raises(
        ValueError, match="the schedule is for 2 layers and 17 tokens; the backbone has 3 layers and 17 tokens"
    ):
        ReducedModel(VIT, create_method("tome"), plan)


def test_an_unknown_site_is_refused_with_the_list():
    with pytest.raises(
        ValueError, match="no site 'middle'; there are input, before_attention, queries, attention, after_attention"
    ):
        tokred.reduce(VIT, First("middle"), r=3)


def test_a_schedule_that_removes_anything_is_refused_for_none():
    with pytest.raises(ValueError, match=r"r=3 asks none to leave 14 of the 17 tokens"):
        tokred.reduce(VIT, "none", r=3)


# Options


class Typed(Method):
    def __init__(
        self, flag: bool = True, share: float = 0.5, num: int = 3, kind: Literal["a", "b"] = "a", word: str = ""
    ):
        super().__init__()

    def assign(self, tokens, attention, keep):
        raise NotImplementedError


def test_options_are_the_typed_arguments_of_init():
    assert list(method_options(Typed)) == ["flag", "share", "num", "kind", "word"]
    assert list(method_options(tokred.METHODS["tome"])) == ["matching", "proportional_attention", "seed"]
    assert method_options(tokred.METHODS["none"]) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flag": 1}, "flag of typed must be bool; got 1"),
        ({"flag": "yes"}, "flag of typed must be bool; got 'yes'"),
        ({"share": "half"}, "share of typed must be float; got 'half'"),
        ({"share": True}, "share of typed must be float; got True"),
        ({"num": 2.5}, "num of typed must be int; got 2.5"),
        ({"num": True}, "num of typed must be int; got True"),
        ({"kind": "c"}, "kind of typed must be one of a, b; got 'c'"),
        ({"word": 3}, "word of typed must be str; got 3"),
        ({"flags": True}, "typed has no option 'flags'; its options are: flag, share, num, kind, word"),
    ],
)
def test_a_wrong_option_is_refused(options, message, monkeypatch):
    tokred.METHODS.names()
    monkeypatch.setitem(tokred.METHODS._classes, "typed", Typed)
    with pytest.raises(ValueError, match=message):
        create_method("typed", **options)


def test_a_whole_number_is_a_float_too(monkeypatch):
    tokred.METHODS.names()
    monkeypatch.setitem(tokred.METHODS._classes, "typed", Typed)
    assert isinstance(create_method("typed", share=1), Typed)


def test_an_option_of_a_method_without_any_is_refused():
    with pytest.raises(ValueError, match="none has no option 'r_max'; its options are: none"):
        create_method("none", r_max=3)


def test_options_beside_a_method_that_is_made_already_are_refused():
    with pytest.raises(ValueError, match=r"options go with a method's name; First is made already: \['seed'\]"):
        tokred.reduce(VIT, First(), r=1, seed=3)


# The methods, where they differ from a plain merge


@pytest.mark.parametrize("fuse", [False, True])
def test_evit_keeps_what_the_class_token_looks_at(fuse):
    reduced = tokred.reduce(VIT, "evit", keep_rate=0.5, layers=[1], fuse=fuse)
    with torch.no_grad():
        tokens = VIT.feedforward(0, VIT.attend(0, VIT.embed(X))[0])
        row_BN = VIT.attend(1, tokens, statistics=("map",))[1].map_BHNN.mean(1)[:, 0]
    best = row_BN[:, 1:].argsort(1, descending=True)[:, :8] + 1
    source_BM = reduced.trace(X).source_BM[-1]
    assert torch.equal(source_BM.gather(1, best), torch.arange(1, 9).expand(2, -1))
    others = [row[row >= 9].tolist() if fuse else row[row < 0].tolist() for row in source_BM]
    assert others == [[9 if fuse else -1] * 8] * 2


def test_evit_with_one_fused_token_conserves_mass():
    trace = tokred.reduce(VIT, "evit", keep_rate=0.5, layers=[0, 1]).trace(X)
    assert trace.size_BN[-1].sum(1).tolist() == [17, 17]


@pytest.mark.parametrize("kind", ["distilled", "registers"])
@pytest.mark.parametrize("method", ["evit", "top_k", "tome", "vid_tldr", "random_drop", "random_merge"])
def test_every_prefix_token_survives_the_strongest_reduction(kind, method):
    backbone = MODELS[kind]
    reduced = tokred.reduce(backbone, method, r=100, allow_clip=True)
    trace = reduced.trace(torch.randn(2, *backbone.sample_shape, generator=torch.Generator().manual_seed(0)))
    places = torch.arange(backbone.prefix)
    assert all(torch.equal(source_BM[:, : backbone.prefix], places.expand(2, -1)) for source_BM in trace.source_BM)


def test_vid_tldr_merges_into_full_weight_where_attention_is_uniform():
    """Where the official code gives NaN."""
    backbone = tiny_models()["umt"]
    for block in backbone.encoder.blocks:
        nn.init.zeros_(block.attn.qkv.weight[: 2 * 24])
        nn.init.zeros_(block.attn.q_bias)
    clips = torch.randn(2, *backbone.sample_shape, generator=torch.Generator().manual_seed(0))
    trace = tokred.reduce(backbone, "vid_tldr", r=[5, 3]).trace(clips)
    assert trace.logits.isfinite().all()
    assert trace.size_BN[0].sum(1).tolist() == [16, 16]  # nothing counts as background: this is ToMe


def test_vid_tldr_is_finite_where_attention_is_exactly_zero():
    """Where the official code gives NaN too."""
    backbone = tiny_models()["umt"]
    with torch.no_grad():
        for block in backbone.encoder.blocks:
            block.attn.qkv.weight[: 2 * 24] *= 30  # logits of some thousand
    clips = torch.randn(2, *backbone.sample_shape, generator=torch.Generator().manual_seed(0))
    trace = tokred.reduce(backbone, "vid_tldr", r=[5, 3]).trace(clips)
    assert trace.logits.isfinite().all()
    assert all((size_BN >= 1).all() for size_BN in trace.size_BN)


def test_vid_tldr_does_not_count_the_prefix_as_background():
    from tokred.matching import contrast

    entropy = torch.tensor([[-9.0, -3.0, -1.0, -2.0]])
    assert contrast(entropy, prefix=1)[:, 1:].tolist() == contrast(entropy[:, 1:]).tolist() == [[0, 1, 0]]


# the last is what rounding makes of attention to one token alone
@pytest.mark.parametrize("entropy", [-7.0, 0.0, 1e-6])
def test_without_contrast_all_tokens_of_vid_tldr_are_salient(entropy):
    from tokred.matching import contrast

    assert contrast(torch.full((1, 64), entropy)).eq(1).all()


def test_plan_schedule_is_what_reduce_uses():
    method = create_method("evit")
    plan = plan_schedule(VIT, method, keep_rate=0.5, layers=[1])
    assert plan == tokred.reduce(VIT, "evit", keep_rate=0.5, layers=[1]).schedule


# Where a method works


class Movable(Method):
    """Published between attention and MLP; works at two other places."""

    name = "movable"
    other_sites: ClassVar[tuple[str, ...]] = ("before_attention", "output")

    def __init__(self, share: float = 0.5):
        super().__init__()
        self.share = share

    def assign(self, tokens, attention, keep):
        return Assignment.select(torch.arange(keep).expand(tokens.x_BNC.shape[0], -1), tokens.num)


class Fixed(Movable):
    other_sites = ()


class Own(Movable):
    """Its statistics depend on the site, so that it takes the option itself."""

    def __init__(self, site: Literal["after_attention", "after_mlp"] = "after_attention"):
        super().__init__()
        self.site, self.statistics = site, ("received",) if site == "after_mlp" else ()


@pytest.fixture
def movable(monkeypatch):
    tokred.METHODS.names()
    for name, cls in (("movable", Movable), ("fixed", Fixed), ("own", Own)):
        monkeypatch.setitem(tokred.METHODS._classes, name, cls)


def test_the_site_of_a_method_that_can_be_moved_is_an_option(movable):
    assert list(method_options(Movable)) == ["share", "site"]
    assert create_method("movable", site="output", share=0.1).site == "output"
    assert create_method("movable").site == "after_attention"


def test_a_site_moves_one_method_and_not_its_class(movable):
    create_method("movable", site="output")
    assert create_method("movable").site == Movable.site == "after_attention"


def test_a_site_that_a_method_cannot_be_moved_to_is_refused_with_those_it_can(movable):
    message = "site of movable must be one of after_attention, before_attention, output; got 'queries'"
    with pytest.raises(ValueError, match=message):
        create_method("movable", site="queries")


def test_a_method_that_cannot_be_moved_has_no_option_site(movable):
    with pytest.raises(ValueError, match="fixed has no option 'site'; its options are: share"):
        create_method("fixed", site="output")


def test_a_method_that_takes_the_site_itself_gets_it(movable):
    assert create_method("own", site="after_mlp").statistics == ("received",)


@pytest.mark.parametrize("site", ["before_attention", "after_attention"])
def test_the_option_site_says_where_it_works(site, movable):
    with torch.no_grad():
        assert torch.allclose(tokred.reduce(VIT, "movable", r=[0, 6], site=site)(X), by_hand(site, 1, 11), atol=1e-6)


def test_a_budget_at_the_output_is_refused_with_the_way_out(movable):
    message = (
        "movable works at the encoder's output, where all of its MACs are spent; give r, keep_rate or tokens in place of a "
        "budget, or site=before_attention to work inside the encoder"
    )
    with pytest.raises(ValueError, match=message):
        tokred.reduce(VIT, "movable", budget=0.5, site="output")


def test_a_method_of_the_output_that_cannot_be_moved_says_so_without_a_way_out():
    with pytest.raises(ValueError, match="give r, keep_rate or tokens in place of a budget$"):
        tokred.reduce(VIT, First("output"), budget=0.5)


# What a method is given


def test_tokens_know_their_layer_and_its_number():
    method = First()
    tokred.reduce(VIT, method, r=[3, 0, 2])(X)
    assert [(tokens.layer, tokens.depth) for tokens, _, _ in method.seen] == [(0, 3), (2, 3)]


def test_places_are_carried_for_methods_that_read_them_alone():
    for needs in (False, True):
        method = First()
        method.needs_places = needs
        tokred.reduce(VIT, method, r=[3, 0, 2])(X)
        assert [tokens.place_BN is None for tokens, _, _ in method.seen] == [not needs] * 2
    assert method.seen[1][0].place_BN.tolist() == [[-1, *range(13)]] * 2


@pytest.mark.parametrize("site", ["input", "before_attention", "after_attention", "after_mlp", "output"])
def test_pixels_are_for_the_input_and_features_before_the_mlp_for_behind_it(site):
    method = First(site)
    reduced = tokred.reduce(VIT, method, r=[0, 0, 3] if site == "output" else [3])
    states = []
    with torch.no_grad():
        reduced.run(X, states=states)
    (tokens, _, _) = method.seen[0]
    assert (tokens.pixels is X) == (site == "input")
    assert (tokens.before_mlp_BNC is not None) == (site in ("after_mlp", "output"))
    assert all(state.pixels is None and state.before_mlp_BNC is None for state in states)


def test_features_before_the_mlp_are_those_that_enter_it():
    method = First("after_mlp")
    tokred.reduce(VIT, method, r=[3])(X)
    with torch.no_grad():
        assert torch.equal(method.seen[0][0].before_mlp_BNC, VIT.attend(0, VIT.embed(X))[0].x_BNC)


# Counts that differ by sample


class AsManyAsItsPlace(First):
    """In every layer as many tokens go from a sample as are before it in the batch."""

    varies = True

    def assign(self, tokens, attention, keep):
        self.seen.append((tokens, attention, keep))
        num_B1 = (tokens.num_real() - torch.arange(len(tokens.x_BNC)))[:, None].clamp_max(keep)
        place = torch.arange(keep).expand(tokens.x_BNC.shape[0], -1)
        return Assignment.select(place, tokens.num, place < num_B1)


@pytest.mark.parametrize("layers", [None, [1], [0, 2]])
def test_a_method_that_varies_works_in_the_layers_that_are_named(layers):
    method = AsManyAsItsPlace()
    tokred.reduce(VIT, method, layers=layers)(X)
    assert [tokens.layer for tokens, _, _ in method.seen] == ([0, 1, 2] if layers is None else layers)


def test_a_number_of_tokens_is_the_most_that_a_method_that_varies_may_leave():
    method = AsManyAsItsPlace()
    trace = tokred.reduce(VIT, method, tokens=[17, 9, 9]).trace(X)
    assert [keep for _, _, keep in method.seen] == [9] and trace.num_B[-1].amax() == 9


def test_layers_beside_a_number_are_refused_for_a_method_that_varies_too():
    with pytest.raises(ValueError, match="layers goes with keep_rate or budget"):
        tokred.reduce(VIT, AsManyAsItsPlace(), layers=[1], r=2)


def test_a_method_that_compares_frames_is_refused_on_images():
    method = First()
    method.name, method.needs_frames = "it", True
    with pytest.raises(ValueError, match="it compares frames, and the inputs of TimmViT have one here"):
        tokred.reduce(VIT, method, r=2)
    tokred.reduce(MODELS["umt"], method, r=2)


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("tofu", {"merge_from": "x"}, "merge_from of tofu must be int; got 'x'"),
        ("pitome", {"fall": "x"}, "fall of pitome must be float; got 'x'"),
        ("ltmp", {"merge_threshold": float("nan")}, "merge_threshold of ltmp must be a finite number; got nan"),
        ("tofu", {"merge_from": -3}, "merge_from must be a layer, from 0"),
        ("pitome", {"alpha": -1.0}, "alpha must be 0 or more; got -1"),
        ("rlt", {"tau": -1.0}, "tau must be 0 or more; got -1"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(method, options, says):
    with pytest.raises(ValueError, match=says):
        create_method(method, **options)


def test_an_option_may_be_none_where_it_says_so():
    assert create_method("tofu", merge_from=None).merge_from is None
    assert create_method("pitome", fall=0.4).fall == 0.4

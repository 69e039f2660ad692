"""An option solved for a budget, against torch's counter sample by sample and a scan of the values."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tokred
from tokred import METHODS, Assignment, Method, calibration
from tokred.calibration import TOLERANCE, Calibration, calibrated, mean_share
from tokred.reduced import ReducedModel
from tokred.reduction import plan_schedule
from tokred.testing import tiny_models

MODELS = tiny_models()
VIT = MODELS["class_token"]  # 17 tokens, 3 layers


def images(num: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(num, *VIT.sample_shape, generator=torch.Generator().manual_seed(seed))


class Bright(Method):
    """Keeps the patches whose first channel is above ``least``."""

    name = "bright"
    varies = True
    conserves_mass = False

    def __init__(self, least: float = 0.0, most: float = 5.0):
        super().__init__()
        self.least, self.most = least, most

    def assign(self, tokens, attention, keep):
        place_N = torch.arange(tokens.num)
        stays_BN = (tokens.x_BNC[..., 0] > self.least) | (place_N < tokens.prefix)
        stays_BN &= place_N < tokens.num_real()[:, None]
        index_BK = (~stays_BN).long().argsort(dim=1, stable=True)[:, :keep]
        return Assignment.select(index_BK, tokens.num, place_N[:keep] < stays_BN.sum(1, keepdim=True))

    def knob(self, num_tokens):
        return "least", self.most, -9.0


class Best(Bright):
    """Keeps ``num`` patches of the largest first channel, and one less where the class token's second channel is above 0."""

    name = "best"

    def __init__(self, num: int = 5):
        super().__init__()
        self.num = num

    def assign(self, tokens, attention, keep):
        place_N = torch.arange(tokens.num)
        score_BN = tokens.x_BNC[..., 0].masked_fill(place_N >= tokens.num_real()[:, None], -torch.inf)
        index_BK = score_BN.masked_fill(place_N < tokens.prefix, torch.inf).argsort(dim=1, descending=True)[:, :keep]
        few_B1 = (tokens.x_BNC[:, :1, 1] > 0).long()
        num_B1 = (tokens.prefix + self.num - few_B1).minimum(tokens.num_real()[:, None])
        return Assignment.select(index_BK, tokens.num, place_N[:keep] < num_B1)

    def knob(self, num_tokens):
        return "num", 1, num_tokens


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    METHODS.names()
    monkeypatch.setitem(METHODS._classes, "bright", Bright)
    monkeypatch.setitem(METHODS._classes, "best", Best)


def counted_share(model: ReducedModel, inputs: Tensor) -> float:
    """The mean of what torch counts on each sample alone, as a share of the unreduced model's."""
    model.backbone.requires_grad_(False)
    macs = []
    for sample in inputs.split(1):
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(sample)
        macs.append(counter.get_total_flops() // 2)
    return sum(macs) / len(macs) / model.unreduced_cost().macs


# Meeting the budget


@pytest.mark.parametrize(("method", "budget"), [("bright", 0.5), ("bright", 0.7), ("bright", 0.9), ("best", 0.7)])
def test_the_budget_is_met_on_the_samples_by_what_torch_counts(method, budget):
    reduced = tokred.reduce(VIT, method, budget=budget, calibrate_on=images())
    assert counted_share(reduced, images()) == pytest.approx(budget, rel=TOLERANCE)


@pytest.mark.parametrize("layers", [[1], [0, 2]])
def test_the_budget_is_met_in_the_layers_that_are_named(layers):
    reduced = tokred.reduce(VIT, "bright", budget=0.8, layers=layers, calibrate_on=images())
    assert reduced.schedule.reducing_layers == tuple(layers)
    assert counted_share(reduced, images()) == pytest.approx(0.8, rel=TOLERANCE)


def test_batches_and_one_tensor_are_the_same_samples():
    one, two = (
        tokred.reduce(VIT, "bright", budget=0.7, calibrate_on=given)
        for given in (images(), iter([images()[:5], images()[5:]]))
    )
    assert one.method.least == two.method.least


def test_the_mean_share_weighs_samples_and_not_batches():
    model = tokred.reduce(VIT, "bright")
    batches = [images()[:1], images()[1:]]
    assert mean_share(model, batches) == pytest.approx(counted_share(model, images()), rel=1e-12)


def test_of_other_samples_the_share_is_what_it_is():
    reduced = tokred.reduce(VIT, "bright", budget=0.7, calibrate_on=images())
    assert mean_share(reduced, [images(seed=1)]) != pytest.approx(0.7, rel=1e-6)


def test_what_was_found_is_told():
    plan = plan_schedule(VIT, Bright())
    model, found = calibrated(VIT, lambda own: Bright(**own), plan, 0.7, [images()[:7], images()[7:]])
    share = mean_share(model, [images()])
    assert found == Calibration("least", model.method.least, share, 8)
    assert model.schedule.spec == f"budget=0.7: least={found.value:g} spends {share:.4f} on 8 calibration samples"


def test_other_options_stay_as_they_were_given():
    assert tokred.reduce(VIT, "bright", most=2.0, budget=0.8, calibrate_on=images()).method.most == 2.0


def test_a_whole_number_stays_whole():
    reduced = tokred.reduce(VIT, "best", budget=0.7, calibrate_on=images())
    assert type(reduced.method.num) is int


def test_a_budget_that_a_whole_number_can_meet_is_met():
    shares = [mean_share(tokred.reduce(VIT, "best", num=num), [images()]) for num in range(1, 18)]
    for budget in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, *shares):
        can_be_met = min(abs(share / budget - 1) for share in shares) <= TOLERANCE
        try:
            reduced = tokred.reduce(VIT, "best", budget=budget, calibrate_on=images())
        except ValueError as error:
            assert not can_be_met and "the nearest it reaches" in str(error)
        else:
            assert mean_share(reduced, [images()]) == pytest.approx(budget, rel=TOLERANCE)


def test_the_model_that_is_given_is_left_in_its_mode():
    model = tiny_models()["class_token"].train()
    reduced = tokred.reduce(model, "bright", budget=0.8, calibrate_on=images())
    assert model.training and reduced.training


# What is refused


def test_a_budget_out_of_the_options_reach_is_refused_with_the_nearest():
    least_share = mean_share(tokred.reduce(VIT, "bright", least=0.5), [images()])
    message = (
        f"bright cannot spend 0.2 of the unreduced MACs by its option least; the nearest it reaches on the 8 calibration "
        f"samples is {least_share:.3f}, with least=0.5"
    )
    with pytest.raises(ValueError, match=message):
        tokred.reduce(VIT, "bright", most=0.5, budget=0.2, calibrate_on=images())


@pytest.mark.parametrize("budget", [0, -0.5, 1.01])
def test_a_budget_is_a_share(budget):
    with pytest.raises(ValueError, match="budget is a share of the unreduced MACs, above 0 and at most 1"):
        tokred.reduce(VIT, "bright", budget=budget, calibrate_on=images())


@pytest.mark.parametrize("nothing", [[], images(0)])
def test_no_samples_are_refused(nothing):
    with pytest.raises(ValueError, match="calibrate_on must hold one sample at least"):
        tokred.reduce(VIT, "bright", budget=0.7, calibrate_on=nothing)


def test_a_budget_without_samples_says_how_to_give_them():
    message = (
        "the counts of bright differ by sample, so that a budget is met by its option least, on samples apart from the test: "
        "pass calibrate_on=INPUTS and the method by name, or give least yourself and no budget"
    )
    with pytest.raises(ValueError, match=message):
        tokred.reduce(VIT, "bright", budget=0.7)


def test_a_method_that_is_made_already_cannot_be_solved_for():
    with pytest.raises(ValueError, match="pass calibrate_on=INPUTS and the method by name"):
        tokred.reduce(VIT, Bright(), budget=0.7, calibrate_on=images())


def test_a_method_without_an_option_to_solve_for_says_so(monkeypatch):
    monkeypatch.setattr(Bright, "knob", Method.knob)
    with pytest.raises(ValueError, match="has no option that a budget could be solved for"):
        tokred.reduce(VIT, "bright", budget=0.7, calibrate_on=images())


def test_a_shape_is_no_business_of_an_option():
    with pytest.raises(
        ValueError,
        match="that of bright is met by one of its options, which decides itself where tokens go; drop shape='front'",
    ):
        tokred.reduce(VIT, "bright", budget=0.7, shape="front", calibrate_on=images())


def test_the_option_that_a_budget_is_solved_for_cannot_be_given_beside_it():
    with pytest.raises(
        ValueError, match="tau of rlt is what a budget is solved for; give one of the two: tau=0.1 without"
    ):
        tokred.reduce(tiny_models()["umt"], "rlt", budget=0.7, calibrate_on=torch.zeros(1, 4, 3, 32, 32), tau=0.1)


@pytest.mark.parametrize(
    ("method", "amount"), [("tome", {"r": 1}), ("tome", {"budget": 0.7}), ("bright", {"r": 1}), ("bright", {})]
)
def test_samples_that_nothing_is_calibrated_on_are_refused(method, amount):
    with pytest.raises(ValueError, match="calibrate_on goes with a budget, and a method whose counts differ by sample"):
        tokred.reduce(VIT, method, calibrate_on=images(), **amount)


def test_batches_with_labels_are_refused_in_one_line():
    with pytest.raises(ValueError, match="batches of inputs alone, and got a tuple among them"):
        tokred.reduce(VIT, "bright", budget=0.7, calibrate_on=[(images(), torch.zeros(2))])


def test_what_was_tried_for_one_budget_is_not_tried_again_for_another(monkeypatch):
    runs, share, known = [], calibration.mean_share, {}
    monkeypatch.setattr(calibration, "mean_share", lambda *given: (runs.append(1), share(*given))[1])
    backbone = VIT
    plan = plan_schedule(backbone, METHODS["bright"]())

    def found(budget, known):
        return calibration.calibrated(
            backbone, lambda own: METHODS["bright"](**own), plan, budget, [images()], known=known
        )

    first, num_first = found(0.8, known)[1], len(runs)
    assert found(0.8, known)[1] == first and len(runs) == num_first == len(known)
    other = found(0.7, known)[1]
    assert other.share == pytest.approx(0.7, rel=0.01) and len(runs) == len(known)  # nothing is run twice


def test_beside_a_jump_the_search_goes_on_between_the_nearest_of_equal_shares():
    tried = {5.0: 0.1, 1.0: 0.4, 0.5: 0.4, 0.4: 0.9, -2.0: 0.9, -9.0: 1.0}  # it jumps between 0.5 and 0.4
    assert calibration._ends(tried, 0.7, 5.0, -9.0) == (0.5, 0.4)


def test_the_model_says_what_was_met():
    model = tokred.reduce(VIT, "bright", budget=0.7, calibrate_on=images())
    assert model.calibration.share == pytest.approx(0.7, rel=0.02)
    assert tokred.reduce(VIT, "bright").calibration is None

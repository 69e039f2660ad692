"""Matchings against slow loops from the papers' words, and draws of random numbers against what chance would do."""

import math

import pytest
import torch

from tokred import matching


def metric(num: int, batch: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, num, 6, generator=torch.Generator().manual_seed(seed))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))


def members(group_N: torch.Tensor) -> list[list[int]]:
    """The places in each group, in the order of the groups."""
    return [(group_N == group).nonzero().flatten().tolist() for group in range(int(group_N.max()) + 1)]


def tome_by_hand(metric_NC: torch.Tensor, r: int, prefix: int, sort: bool) -> list[list[int]]:
    """ToMe, Sec. 3.1: tokens take turns to be in A and in B; each of A draws an edge to the most similar of B; the r most
    similar edges stay; connected tokens merge; what is left of A, then B. Protected tokens draw and get no edges."""
    num = len(metric_NC)
    a, b = list(range(0, num, 2)), list(range(1, num, 2))
    edges = []
    for i in a:
        if i < prefix:
            continue
        similarity, j = max((cosine(metric_NC[i], metric_NC[j]), -j) for j in b if j >= prefix)
        edges.append((similarity, i, -j))
    edges.sort(reverse=True)
    partner = {i: j for _, i, j in edges[:r]}
    left = [i for _, i, _ in edges[r:]]  # by falling similarity
    if sort:
        left = sorted([i for i in a if i < prefix] + left)
    groups = [[i] for i in left] + [sorted([j, *(i for i in partner if partner[i] == j)]) for j in b]
    if prefix < 2:
        return groups
    return [[i] for i in range(prefix)] + [group for group in groups if group[0] >= prefix]


@pytest.mark.parametrize(("prefix", "sort"), [(0, False), (0, True), (1, True), (2, True), (3, True), (5, True)])
@pytest.mark.parametrize("num", [12, 13])
def test_bipartite_matching_is_that_of_the_paper(num, prefix, sort):
    for r in range(1, (num - prefix) // 2 + 1):
        group_BN = matching.bipartite_matching(metric(num), r, prefix=prefix, sort=sort)
        assert [members(row) for row in group_BN] == [tome_by_hand(x, r, prefix, sort) for x in metric(num)]


def test_bipartite_matching_breaks_ties_by_place():
    same = torch.ones(1, 8, 4)
    assert members(matching.bipartite_matching(same, 3)[0]) == [[6], [0, 1, 2, 4], [3], [5], [7]]


def test_bipartite_matching_goes_by_direction_not_by_length():
    longer = metric(12) * torch.arange(1, 13)[:, None]
    assert torch.equal(matching.bipartite_matching(longer, 4), matching.bipartite_matching(metric(12), 4))


def test_bipartite_matching_of_a_zero_vector_gives_groups_that_exist():
    zero = metric(12)
    zero[0, 4], zero[1, 5] = 0, 0
    group_BN = matching.bipartite_matching(zero, 4, prefix=1)
    assert all(sorted(place for group in members(row) for place in group) == list(range(12)) for row in group_BN)
    assert group_BN.max() == 7


def kth_by_hand(metric_NC: torch.Tensor, r: int, prefix: int) -> list[list[int]]:
    """ToMe's appendix D: of every k tokens the last is a destination. Here k is the smallest that leaves r sources."""
    num = len(metric_NC) - prefix
    k = 2
    while num - num // k < r:
        k += 1
    destinations = [prefix + place for place in range(k - 1, num // k * k, k)]
    return nearest_by_hand(
        metric_NC, [n for n in range(prefix, len(metric_NC)) if n not in destinations], destinations, r
    )


def nearest_by_hand(metric_NC: torch.Tensor, sources: list[int], destinations: list[int], r: int) -> list[list[int]]:
    """The r sources most alike to a destination join it; groups in order of the tokens that stay."""
    edges = [max((cosine(metric_NC[i], metric_NC[j]), -j) for j in destinations) for i in sources]
    best = sorted(zip(edges, sources, strict=True), reverse=True)[:r]
    partner = {i: -j for (_, j), i in best}
    stay = [n for n in range(len(metric_NC)) if n not in partner]
    return [sorted([n, *(i for i in partner if partner[i] == n)]) for n in stay]


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("num", [12, 13])
def test_kth_matching_is_that_of_the_paper(num, prefix):
    for r in range(1, num - prefix):
        group_BN = matching.kth_matching(metric(num), r, prefix=prefix)
        assert [members(row) for row in group_BN] == [kth_by_hand(x, r, prefix) for x in metric(num)]


@pytest.mark.parametrize("prefix", [0, 2])
def test_random_matching_joins_the_drawn_tokens_to_the_most_alike(prefix):
    noise_BN = matching.noise(torch.arange(3), 0, 12)
    for r in (1, 4, 11 - prefix):
        group_BN = matching.random_matching(metric(12), noise_BN, r, prefix=prefix)
        for row, noise_N, x in zip(group_BN, noise_BN, metric(12), strict=True):
            order = sorted(range(prefix, 12), key=lambda place, noise_N=noise_N: int(noise_N[place]))
            assert members(row) == nearest_by_hand(x, order[:r], order[r:], r)


@pytest.mark.parametrize("prefix", [0, 1, 4])
def test_sources_are_the_tokens_that_were_merged_into_another(prefix):
    for r in range(1, (13 - prefix) // 2 + 1):
        group_BN = matching.bipartite_matching(metric(13), r, prefix=prefix)
        merged = [[i for group in members(row) if len(group) > 1 for i in group if i % 2 == 0] for row in group_BN]
        assert [row.nonzero().flatten().tolist() for row in matching.sources(group_BN, r, prefix=prefix)] == [
            sorted(row) for row in merged
        ]


@pytest.mark.parametrize("kind", ["bipartite", "kth", "random"])
def test_pairs_are_the_products_that_the_matching_makes(kind, monkeypatch):
    seen = []
    multiply = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: seen.append(a.shape[-2] * b.shape[-1]) or multiply(a, b)
    )
    if kind == "bipartite":
        matching.bipartite_matching(metric(13), 4, prefix=1)
    elif kind == "kth":
        matching.kth_matching(metric(13), 4, prefix=1)
    else:
        matching.random_matching(metric(13), matching.noise(torch.arange(3), 0, 13), 4, prefix=1)
    assert seen == [matching.pairs(kind, 13, 9, 1)]


def test_groups_by_place_numbers_the_tokens_that_stay():
    target = torch.tensor([[0, 0, 2, 5, 4, 5], [1, 1, 1, 3, 3, 3]])
    assert matching.groups_by_place(target).tolist() == [[0, 0, 1, 3, 2, 3], [0, 0, 0, 1, 1, 1]]


def test_top_places_are_the_prefix_and_then_the_best_by_falling_score():
    score = torch.tensor([[0.0, 9.0, 0.3, 0.1, 0.3, 0.7]])
    assert matching.top_places(score, 5, prefix=2).tolist() == [[0, 1, 5, 2, 4]]


# Random numbers


def draws(num_samples: int = 4000, seed: int = 0, num: int = 12) -> torch.Tensor:
    """The order in which the tokens of each sample are drawn."""
    return matching.noise(torch.arange(num_samples), seed, num).argsort(1)


def test_noise_depends_on_nothing_but_key_seed_and_number():
    keys = torch.tensor([7, 123456789, -5])
    together, alone = matching.noise(keys, 3, 50), [matching.noise(key[None], 3, 50) for key in keys]
    assert torch.equal(together, torch.cat(alone))


def test_noise_is_the_same_on_every_machine():
    # SplitMix64 in Python's integers
    assert matching.noise(torch.tensor([42]), 1, 5)[0].tolist() == [splitmix(42, 1, 5, place) for place in range(1, 6)]


def splitmix(key: int, seed: int, num: int, place: int) -> int:
    def mix(x):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    state = mix((key + (seed * 2 + 1) * 0xD1342543DE82EF95 + num * 0x632BE5AB) % 2**64)
    return mix(mix((state + place * 0x9E3779B97F4A7C15) % 2**64)) % 2**62


@pytest.mark.parametrize("other", [{"seed": 1}, {"num": 13}])
def test_another_seed_or_number_gives_another_draw(other):
    assert (draws(100)[:, :4] == draws(100, **other)[:, :4]).all(1).sum() <= 2  # by chance 1 in 11,880


def test_every_token_comes_first_equally_often():
    counts = torch.bincount(draws()[:, 0], minlength=12).double()
    # 5 standard deviations of a binomial count
    assert (counts - 4000 / 12).abs().max() < 5 * math.sqrt(4000 * 1 / 12 * 11 / 12)


def test_what_is_drawn_second_does_not_depend_on_what_is_drawn_first():
    order = draws()
    counts = torch.bincount(order[:, 0] * 12 + order[:, 1], minlength=144).view(12, 12).double()
    assert counts.diagonal().sum() == 0
    p = 1 / (12 * 11)
    others = counts[~torch.eye(12, dtype=torch.bool)]
    assert (others - 4000 * p).abs().max() < 5 * math.sqrt(4000 * p * (1 - p))


def test_neighbouring_keys_give_unrelated_draws():
    order = draws()
    same = (order[1:, 0] == order[:-1, 0]).double().mean()
    assert abs(same - 1 / 12) < 5 * math.sqrt(1 / 12 * 11 / 12 / 4000)


def test_noise_has_no_ties():
    noise_BN = matching.noise(torch.arange(50), 0, 500)
    assert all(len(set(row.tolist())) == 500 for row in noise_BN)
    assert noise_BN.min() >= 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_key_of_a_sample_is_its_own(dtype):
    images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    keys = matching.sample_key(images)
    assert keys.tolist() == [matching.sample_key(image[None]).item() for image in images]
    assert len(set(keys.tolist())) == 4


def test_the_key_changes_with_any_pixel_and_with_their_order():
    image = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    changed = image.repeat(48, 1, 1, 1)
    changed.view(48, 48)[torch.arange(48), torch.arange(48)] += 1e-3
    keys = matching.sample_key(torch.cat([image, image.flip(-1), image.transpose(2, 3), changed]))
    assert len(set(keys.tolist())) == 51


def test_the_key_of_a_view_is_that_of_its_values():
    clip = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    view = clip.transpose(1, 2)
    assert torch.equal(matching.sample_key(view), matching.sample_key(view.contiguous()))

"""Seeds against their records' own counts, and the structure of what is drawn."""

import numpy as np
import pytest

from tests.records import full_run, new_run
from tokred.analysis.rows import rows
from tokred.analysis.seeds import draw_seeds, draws, save_seeds


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return full_run(tmp_path_factory.mktemp("run")).finish()


@pytest.fixture(scope="module")
def found(store):
    return draws(store)


def test_each_seed_of_a_random_method_is_there(found):
    assert {(draw.method, draw.seed) for draw in found} == {("random_drop", seed) for seed in range(3)}
    assert len(found) == 2 * 4 * 3  # backbones, budgets, seeds


def test_a_seeds_value_is_its_records_share_right(store, found):
    expected = {
        (r.cell["backbone"], r.cell["schedule"]["amount"], r.cell["seed"]): r.result["num_correct"] / 400
        for r in store.planned()
        if r.cell["method"] == "random_drop"
    }
    assert {(d.backbone, float(d.schedule.split()[1]), d.seed): d.value for d in found} == expected


def test_mean_interval_and_sd_are_those_of_the_table(store, found):
    row = next(row for row in rows(store) if row.method == "random_drop")
    own = found[:3]
    assert (own[0].mean, own[0].low, own[0].high) == (row.value, row.low, row.high)
    assert own[0].sd == pytest.approx(np.std([draw.value for draw in own], ddof=1))


def test_a_line_has_a_marker_for_each_seed_and_the_interval_of_their_mean(found):
    panel = found[:6]
    ax = draw_seeds(panel)
    assert sorted(ax.lines[0].get_xdata()) == sorted(draw.value for draw in panel[:3])
    assert [tuple(bars.get_segments()[0][:, 0]) for bars in ax.collections] == [
        pytest.approx((draw.low, draw.high)) for draw in (panel[0], panel[3])
    ]
    assert [text.get_text() for text in ax.texts] == [f"3 seeds, SD {100 * d.sd:.2f}" for d in (panel[0], panel[3])]


def test_equal_seeds_do_not_hide_each_other(tmp_path):
    run = new_run(tmp_path)
    run.add("none")
    for seed in range(3):
        run.add("random_drop", accuracy=1.0, share=0.5, seed=seed)
    ax = draw_seeds(draws(run.finish()))
    assert len(set(ax.lines[0].get_ydata())) == 3


def test_without_several_seeds_there_is_no_figure(tmp_path):
    run = new_run(tmp_path / "run")
    run.add("none")
    run.add("random_drop", share=0.5, seed=0)
    assert save_seeds(run.finish(), tmp_path) == []

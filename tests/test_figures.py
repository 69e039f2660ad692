"""All figures of a run: which there are, what is said of them, and names that would break a figure or a file."""

import csv
import re
from dataclasses import replace

import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from tests.records import full_run, new_run
from tokred.analysis import figure as figure_module
from tokred.analysis.figure import _rendered, file_stems, legend_below, new_figure
from tokred.analysis.figures import draw_all
from tokred.record import write_json

HOSTILE = (r"$\foo$", "_x", "a" * 5000, "<b>|\x1b[31m\n&")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return draw_all(full_run(folder).finish(), folder / "drawn")


def test_a_run_has_all_figures_that_it_has_the_data_for(drawn):
    assert [one.name for one in drawn] == [
        *("pareto_gmacs", "pareto_speedup", "difference", "forest", "pairwise-mini_cls", "pairwise-mini_mean"),
        *("seeds", "variance", "speed", "staircase"),
    ]


def test_each_has_its_three_files(drawn):
    for one in drawn:
        assert one.png.read_bytes().startswith(b"\x89PNG") and b"<svg" in one.svg.read_bytes()
        with open(one.csv, newline="") as file:
            assert len(list(csv.reader(file))) > 1


def test_what_is_said_has_n_and_is_whole_sentences(drawn):
    for one in drawn:
        assert re.search(r"n = 400 samples|over 30 rounds", one.about), one.name
        assert one.about.endswith(".") and "{" not in one.about


def test_what_is_said_names_no_method(drawn):
    said = " ".join(one.title + one.about for one in drawn)
    assert not re.search(r"tome|vid_tldr|random_drop|\bbeats\b|\bbest\b", said)


def test_a_run_of_one_cell_is_drawn(tmp_path):
    run = new_run(tmp_path)
    run.add("none")
    run.add("tome", share=0.5, accuracy=0.8)
    assert [one.name for one in draw_all(run.finish())] == ["pareto_gmacs", "staircase"]


def test_a_run_in_which_all_failed_is_drawn(tmp_path):
    run = new_run(tmp_path)
    for method in ("none", "tome"):
        run.add(method, status="failed", reason="out of memory")
    assert draw_all(run.finish()) == []


def test_names_that_mean_something_elsewhere_break_nothing(tmp_path):
    run = new_run(tmp_path)
    backbone = "timm/$\\bar$" + "x" * 5000
    run.add("none", backbone=backbone)
    for method in HOSTILE:
        for shape in ("constant", "front"):
            schedule = {"kind": "budget", "amount": 0.5, "shape": shape, "layers": None}
            run.add(method, backbone=backbone, share=0.5, accuracy=0.8, schedule=schedule)
    names = [one.name.partition("-")[0] for one in draw_all(run.finish())]
    assert names == ["pareto_gmacs", "difference", "forest", "pairwise", "variance", "heatmap", "staircase"]


def test_options_that_look_alike_are_told_apart_in_every_figure(tmp_path):
    run = new_run(tmp_path)
    run.add("none")
    for place, name in enumerate(("a\x00b", "a\r\nb")):
        for share in (0.4, 0.6):
            run.add("tome", share=share, accuracy=0.9 - 0.2 * place, options={"fuse": name})
    drawn = {one.name: one.csv.read_text() for one in draw_all(run.finish())}
    assert {"pareto_gmacs", "difference", "forest", "pairwise-mini_cls", "staircase"} == drawn.keys()
    for text in drawn.values():
        assert "fuse=a b" in text and "fuse=a b (2)" in text


def test_records_that_make_no_curves_leave_the_others_and_say_why(tmp_path):
    run = new_run(tmp_path)
    run.add("none")
    keys = [run.add(method, share=0.5, accuracy=0.8) for method in ("tome", "evit")]
    store = run.finish()
    store.predictions_path(keys[0]).unlink()
    with pytest.warns(UserWarning, match="predictions of some are missing"):
        assert [one.name for one in draw_all(store)] == ["pareto_gmacs", "staircase"]


def test_only_the_latest_plan_is_drawn(tmp_path):
    run = new_run(tmp_path)
    for method in ("none", "tome", "evit"):
        run.add(method, share=0.5 if method != "none" else 1.0, accuracy=0.8)
    store = run.finish()
    write_json(store.folder / "plan.json", {"keys": run.keys[:2], "timings": []})
    assert "evit" not in draw_all(store)[0].csv.read_text()


# Files


def test_file_names_are_short_enough_and_differ():
    stems = file_stems("heatmap", [("a" * 5000,), ("a" * 4000,), ("é/ü",)])
    assert len(set(stems)) == 3 and max(len(stem.encode()) for stem in stems) < 250


def test_png_and_svg_have_the_same_layout():
    """The SVG is drawn after the layout was fixed, with other text metrics: nothing moves."""
    figure = new_figure(3, 3)
    ax = figure.subplots()
    _rendered(figure)
    place = ax.get_position().bounds
    figure.draw_without_rendering()
    assert ax.get_position().bounds == place != Figure().subplots().get_position().bounds


def test_no_title_label_or_legend_is_cut_off(tmp_path, monkeypatch):
    """With as many samples as digits make long, and a device as long as names of processors are."""
    run, cut_off = new_run(tmp_path), []
    for backbone in ("mini_cls", "mini_mean"):
        run.add("none", backbone=backbone, num_samples=20_000)
        methods = [
            run.add(name, share=0.5, accuracy=0.8, backbone=backbone, num_samples=20_000)
            for name in ("tome", "vid_tldr")
        ]
        timing = run.time(dict.fromkeys(methods, 1.5), backbone=backbone)
        run.store.add_timing(replace(timing, conditions={"device": f"cpu ({'A Processor ' * 9})"}))

    def looked(figure):
        files = _rendered(figure)
        words = [text for ax in figure.axes for text in (ax.title, ax.xaxis.label, ax.yaxis.label)]
        words += [text for legend in figure.legends for text in legend.get_texts()]
        for text in filter(Text.get_text, words):
            place, (width, height) = text.get_window_extent(), figure.bbox.size
            if place.x0 < 0 or place.y0 < 0 or place.x1 > width or place.y1 > height:
                cut_off.append(text.get_text())
        return files

    monkeypatch.setattr(figure_module, "_rendered", looked)
    assert {"variance", "speed"} < {one.name for one in draw_all(run.finish())}
    assert cut_off == []


@pytest.mark.parametrize(("length", "num_columns"), [(5, 5), (60, 1)])
def test_a_legend_has_as_many_columns_as_its_labels_leave_room_for(length, num_columns):
    figure = new_figure(5, 3)
    legend_below(figure, [Line2D([], [], label="x" * length) for _ in range(6)])
    assert figure.legends[0]._ncols == num_columns

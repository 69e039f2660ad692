"""``tokred profile``: the words of a sweep to tables and a CSV. What is measured is tested in test_profile.py."""

import csv
import io
import os

import pytest
from rich.console import Console

from tokred import METHODS, create_backbone, list_methods, profile, reduce, timing
from tokred.profile import LAYER_PARTS, Profile
from tokred.sweeps.cli import main
from tokred.sweeps.profile import GroupProfile, ModelProfile
from tokred.sweeps.profile_table import lines, print_group

SIZES = {"depth": 3, "embed_dim": 24, "patch_size": 16}  # 64 tokens a clip
SMALL = [*(f"sizes.{name}={n}" for name, n in SIZES.items()), "weights=random", "r=8", "timing.batch_size=2"]
RAISES = '''
from tokred import METHODS, Method


@METHODS.register("raises")
class Raises(Method):
    """Raises."""

    def assign(self, tokens, attention, keep):
        raise RuntimeError("out of luck")
'''


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(timing, "WARM_UP_S", 0.0)
    monkeypatch.setattr(timing, "MIN_BLOCK_MS", 0.0)
    monkeypatch.setattr(profile, "MIN_MS", 0.001)


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """What a test registers goes with it."""
    list_methods()
    monkeypatch.setattr(METHODS, "_classes", dict(METHODS._classes))


@pytest.fixture
def ran(tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder: its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*words):
        code = main(["profile", *words])
        return code, *capsys.readouterr()

    return run


# The command


def test_each_model_has_a_table_and_a_speedup(ran):
    code, out, _ = ran(*SMALL, "backbones=mini_mean", "methods=[vid_tldr,tome]", "timing.rounds=20")
    assert code == 0
    titles = [line for line in out.splitlines() if line.endswith("milliseconds for the batch")]
    assert [title.split(",")[0] for title in titles] == ["unreduced", "vid_tldr r 8", "tome r 8"]
    below = out[out.index("by MACs") :].splitlines()
    assert [line.split()[0] for line in below if " r 8 " in line and "[" in line] == ["vid_tldr", "tome"]


def test_predicted_is_the_ratio_of_the_macs(ran):
    _, out, _ = ran(*SMALL, "backbones=mini_mean", "methods=tome", "timing.rounds=0")
    model = reduce(create_backbone("mini_mean", weights="random", **SIZES), "tome", r=8)
    (row,) = [line for line in out[out.index("by MACs") :].splitlines() if line.startswith("tome r 8")]
    assert row.split()[3] == f"{model.unreduced_cost().gmacs / model.cost().gmacs:.2f}"


def test_nothing_is_written_unless_a_folder_is_given(ran, tmp_path):
    ran(*SMALL, "backbones=mini_mean", "methods=tome", "timing.rounds=0")
    assert os.listdir(tmp_path) == []
    _, out, _ = ran(*SMALL, "backbones=mini_mean", "methods=tome", "timing.rounds=0", "out=found")
    assert "written: found/profile.csv" in out
    rows = list(csv.DictReader((tmp_path / "found" / "profile.csv").open()))
    assert [row["layer"] for row in rows if row["model"] == "tome r 8"] == [
        "embedding",
        "0",
        "1",
        "2",
        "head",
        "forward",
    ]


def test_without_rounds_speed_is_said_to_be_unmeasured(ran):
    _, out, _ = ran(*SMALL, "backbones=mini_mean", "methods=tome", "timing.rounds=0")
    assert "Speed-up was not measured." in out


@pytest.mark.parametrize(
    ("backbone", "sizes"),
    [
        ("timm/vit_tiny_patch16_224", ["sizes.depth=2", "sizes.embed_dim=24", "sizes.img_size=32"]),
        ("umt_base_patch16_224", ["sizes.depth=2", "sizes.embed_dim=24", "sizes.img_size=32", "sizes.num_frames=2"]),
    ],
)
def test_a_backbone_that_moving_shapes_do_not_fit_runs_on_noise(backbone, sizes, ran):
    words = [f"backbones={backbone}", *sizes, "weights=random", "methods=tome", "r=1", "timing.rounds=0"]
    code, out, _ = ran(*words)
    assert code == 0 and f"{backbone}, random weights, a batch of 8 of noise, cpu" in out
    code, _, error = ran(*words, "data=moving_shapes")
    assert code == 2 and error.startswith("error: moving_shapes holds clips")


def test_counts_that_differ_by_sample_are_not_profiled_on_noise(ran):
    sizes = [f"sizes.{name}={n}" for name, n in {"depth": 2, "embed_dim": 24, "img_size": 32, "num_frames": 4}.items()]
    words = ["backbones=umt_base_patch16_224", *sizes, "weights=random", "methods=[rlt,tome]", "r=[[1,0]]"]
    _, out, _ = ran(*words, "timing.rounds=0")
    assert "rlt at most r [1, 0]: refused: its counts differ by sample" in out


def test_a_model_that_cannot_run_is_named_with_the_reason(ran):
    code, out, _ = ran(*SMALL, "backbones=mini_mean", "methods=[evit,tome]", "timing.rounds=0")
    assert code == 0 and "evit r 8: refused: evit reads the attention of a class token" in out


def test_a_method_that_raises_is_named_and_the_others_go_on(ran, tmp_path):
    (tmp_path / "raises.py").write_text(RAISES)
    words = [*SMALL, "backbones=mini_mean", "methods=[raises,tome]", "plugins=raises.py", "timing.rounds=0"]
    code, out, _ = ran(*words)
    assert code == 3 and "raises r 8: failed: RuntimeError: out of luck" in out
    assert "tome r 8, milliseconds" in out


def test_a_method_whose_code_raises_a_value_error_failed_and_was_not_refused(ran, tmp_path):
    (tmp_path / "raises.py").write_text(RAISES.replace("RuntimeError", "ValueError"))
    code, out, _ = ran(*SMALL, "backbones=mini_mean", "methods=[raises,tome]", "plugins=raises.py", "timing.rounds=0")
    assert code == 3 and "raises r 8: failed: out of luck" in out


def test_what_fails_in_the_rounds_is_said_below_the_tables(ran, monkeypatch):
    def fail(*arguments, **options):
        raise MemoryError("no room left\nand a long trace")

    monkeypatch.setattr(timing, "beside", fail)
    code, out, _ = ran(*SMALL, "backbones=mini_mean", "methods=tome", "timing.rounds=20")
    assert code == 0 and "tome r 8, milliseconds for the batch" in out
    assert "Speed-up was not measured: no room left.\n" in out


def test_a_folder_that_cannot_be_made_is_said_before_anything_runs(ran, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, err = ran(*SMALL, "backbones=mini_mean", "methods=tome", "timing.rounds=0", "out=file/run")
    assert code == 2 and out == "" and "file" in err


@pytest.mark.parametrize("word", ["timing.batch_size=[1,2]", "timing.modes=compiled"])
def test_a_profile_is_of_one_batch_size_and_eager(word, ran):
    code, _, error = ran(*SMALL, "backbones=mini_mean", "methods=tome", word)
    assert code == 2 and "a profile is of one batch size, and of eager models" in error


def test_a_wrong_word_is_one_line(ran):
    code, out, error = ran("methods=[tomme]")
    assert (code, out) == (2, "") and error.startswith("error: ") and error.count("\n") == 1


def test_retrieval_is_profiled_up_to_the_joint_space(ran):
    words = ["task=retrieval", "methods=tome", "r=8", "timing.batch_size=1", "timing.rounds=0", "data.num_clips=2"]
    code, out, _ = ran(*words)
    assert code == 0 and "mini_umt, embedded weights, a batch of 1 of moving_shapes" in out


def test_help_names_the_parts(ran):
    code, out, _ = ran("--help")
    assert code == 0
    for part in LAYER_PARTS:
        assert part in out.lower()


# The table, of a made-up measurement


def parts(*times_ms):
    return dict(zip(LAYER_PARTS, times_ms, strict=True))


MADE_UP = Profile(
    tokens=(80, 60),
    embedding_ms=10.0,
    layers_ms=(parts(40.0, 20.0, 8.0, 2.0, 30.0), parts(30.0, 10.0, 6.0, 4.0, 20.0)),
    head_ms=20.0,
    forward_ms=202.0,
    sum_share=0.99,
    reduction_share=0.25,
)


@pytest.fixture
def group():
    nothing = Profile((100, 100), 10.0, (parts(50.0, 0.0, 0.0, 0.0, 40.0),) * 2, 20.0, 210.0, 1.0, 0.0)
    models = (
        ModelProfile("none", "done", "", nothing, 100, 1.0),
        ModelProfile("tome r 20", "done", "", MADE_UP, 100, 1.6, (1.05, 1.0, 1.1)),
    )
    return GroupProfile("some_vit", "random", "noise", 4, "cpu", models, (1.01, 0.99, 1.02), "ok")


@pytest.fixture
def printed(group):
    said = io.StringIO()
    print_group(group, Console(file=said, width=120))
    return said.getvalue()


def test_a_layer_shows_its_tokens_and_parts(printed):
    (row,) = [line for line in printed.splitlines() if line.startswith("0  ") and "->" in line]
    assert row.split() == ["0", "100", "->", "80", "40.0", "20.0", "8.0", "2.0", "30.0", "100.0"]


def test_sums_and_shares_are_over_all_layers(printed):
    rows = printed[printed.index("tome r 20, ") :].splitlines()
    (total,) = [line for line in rows if line.startswith("sum")]
    assert total.split()[4:] == ["70.0", "30.0", "14.0", "6.0", "50.0", "200.0"]
    (share,) = [line for line in rows if line.startswith("% of sum")]
    assert share.split()[3:] == ["35.0", "15.0", "7.0", "3.0", "25.0", "100.0"]


def test_parts_that_a_model_has_not_are_left_out(printed):
    header = printed[printed.index("unreduced, ") :].splitlines()[1]
    assert header.split() == ["layer", "tokens", "attention", "MLP", "sum"]


def test_the_speedup_stands_beside_that_of_the_macs_and_that_without_the_reduction(printed):
    (row,) = [line for line in printed.splitlines() if line.startswith("tome r 20 ")]
    assert row.split()[3:] == ["1.60", "1.05", "[1.00,", "1.10]", "25.0", "1.40"]  # 1.05 / 0.75


def test_the_notes_say_what_the_parts_add_up_to_and_whether_speeds_can_be_trusted(printed):
    assert (
        "Without a stopwatch 202.0 ms. In a round the parts add up to 99.0 % of that (the median of all rounds)."
        in printed
    )
    assert "Timing: ok; the unreduced model against itself comes out as 1.010 [0.990, 1.020]." in printed


def test_the_lines_of_the_csv_are_the_layers_and_the_whole(group):
    of_model = [line for line in lines(group) if line.model == "tome r 20"]
    assert [line.sum_ms for line in of_model] == [10.0, 100.0, 70.0, 20.0, 200.0]
    whole = of_model[-1]
    assert (whole.matching_ms, whole.forward_ms, whole.reduction_time_share) == (14.0, 202.0, 0.25)
    assert (whole.speedup_by_macs, whole.speedup, whole.speedup_low, whole.speedup_high) == (1.6, 1.05, 1.0, 1.1)

"""The words of a command as a configuration, and the one line that is said where they are wrong."""

import os
import shutil

import pytest

from tokred.sweeps import config
from tokred.sweeps.cli import sweep
from tokred.sweeps.config import experiments, read_config
from tokred.tasks import TASKS


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Writes ``experiment=mine``, in a copy of the configuration."""
    conf = shutil.copytree(config.CONF, tmp_path / "conf")
    monkeypatch.setattr(config, "CONF", conf)
    return (conf / "experiment" / "mine.yaml").write_text


# What can be written


def test_the_default_is_budgets_on_both_embedded_backbones():
    default = read_config([])
    assert {kind for kind, _ in default.amounts} == {"budget"} and default.backbones == ["mini_cls", "mini_mean"]


@pytest.mark.parametrize("name", ["methods", "backbones", "weights", "plugins"])
def test_a_single_name_is_a_list_of_one(name):
    assert getattr(read_config([f"{name}=a"]), name) == getattr(read_config([f"{name}=[a]"]), name) == ["a"]


def test_a_single_amount_is_a_list_of_one():
    assert read_config(["budget=0.5"]).amounts == read_config(["budget=[0.5]"]).amounts == [("budget", 0.5)]


def test_a_name_given_twice_counts_once():
    assert read_config(["methods=[tome,evit,tome]"]).methods == ["tome", "evit"]


@pytest.mark.parametrize(
    "word", ["options.tome.matching=kth", "+options.tome.matching=kth", "options={tome:{matching:kth}}"]
)
def test_an_option_needs_no_plus(word):
    assert read_config(["methods=tome", word]).options == {"tome": {"matching": "kth"}}


def test_sizes_and_data_need_no_plus():
    read = read_config(["sizes.depth=2", "data.num_clips=5"])
    assert read.sizes == {"depth": 2} and read.data["num_clips"] == 5


@pytest.mark.parametrize(("text", "value"), [("true", True), ("3", 3), ("0.5", 0.5), ("kth", "kth"), ("[1,2]", [1, 2])])
def test_an_option_keeps_its_type(text, value):
    read = read_config(["methods=tome", f"options.tome.any={text}"]).options["tome"]["any"]
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("word", "amounts"),
    [
        ("r=8", [("r", 8)]),
        ("r=[8,0.1]", [("r", 8), ("r", 0.1)]),
        ("r=[[600,200]]", [("r", [600, 200])]),
        ("keep_rate=[0.7,[0.9,0.8]]", [("keep_rate", 0.7), ("keep_rate", [0.9, 0.8])]),
        ("tokens=[[9,8,7]]", [("tokens", [9, 8, 7])]),
    ],
)
def test_the_default_budget_gives_way(word, amounts):
    assert read_config([word]).amounts == amounts


@pytest.mark.parametrize(
    ("text", "choices"), [("null", [None]), ("[3,6]", [[3, 6]]), ("[[3],[3,6]]", [[3], [3, 6]]), ("[0]", [[0]])]
)
def test_layers_are_one_choice_or_a_list_of_choices(text, choices):
    assert read_config([f"layers={text}"]).layers == choices


def test_batch_sizes_and_modes_of_the_timing_are_one_or_a_list():
    one, several = (read_config([word]).timing for word in ("timing.batch_size=4", "timing.batch_size=[1,8,1]"))
    assert (one.batch_size, several.batch_size, one.modes) == ([4], [1, 8], ["eager"])
    assert read_config(["timing.modes=compiled"]).timing.modes == ["compiled"]


def test_every_mode_is_measured_at_every_batch_size_and_without_rounds_none():
    words = ["timing.modes=[eager,compiled]", "timing.batch_size=[1,8]"]
    pairs = [("eager", 1), ("eager", 8), ("compiled", 1), ("compiled", 8)]
    assert read_config(words).timing.measurements == pairs
    assert read_config([*words, "timing.rounds=0"]).timing.measurements == []


# Experiments


def test_an_experiment_sets_what_it_names(mine):
    mine("# @package _global_\nmethods: [evit]\nkeep_rate: 0.7\nlayers: [1]\n")
    read = read_config(["experiment=mine"])
    assert (read.methods, read.amounts, read.layers) == (["evit"], [("keep_rate", 0.7)], [[1]])


def test_a_word_stands_over_the_experiment(mine):
    mine("# @package _global_\nmethods: [evit]\nbudget: [0.9]\n")
    read = read_config(["experiment=mine", "methods=[tome]", "budget=0.5"])
    assert (read.methods, read.amounts) == (["tome"], [("budget", 0.5)])


def test_an_amount_that_was_asked_for_stands_over_another_kind_in_the_experiment(mine):
    mine("# @package _global_\nkeep_rate: 0.7\n")
    assert read_config(["experiment=mine", "budget=0.5"]).amounts == [("budget", 0.5)]


def test_an_experiment_with_an_unknown_setting_is_refused(mine):
    mine("# @package _global_\nmethod: [evit]\n")
    with pytest.raises(ValueError, match="no 'method' in the settings. Did you mean 'methods'"):
        read_config(["experiment=mine"])


def test_experiments_are_listed_by_name(mine):
    mine("# @package _global_\nseeds: 1\n")
    assert "mine" in experiments()


def test_each_task_has_its_file():
    assert set(config._names("task")) == set(TASKS)


# Wrong words

TINY = ["weights=random", "sizes.depth=2", "sizes.embed_dim=24", "sizes.patch_size=16", "data.num_clips=2"]
WRONG = [
    ("methods", "'methods' is not KEY=VALUE"),
    ("--fast", "'--fast' is not KEY=VALUE"),
    ("~data", "'~data' is not KEY=VALUE"),
    ("methods=[tome", "'methods=[tome' cannot be read"),
    ("weights=a=b.pth", "cannot be read"),
    ("methods=tome,evit", "methods=[a,b]"),
    ("method=tome", "no 'method' in the settings. Did you mean 'methods'"),
    ("+new=1", "no 'new' in the settings"),
    ("hydra.run.dir=x", "no 'hydra' in the settings"),
    ("timing.round=20", "there are timing.rounds, timing.batch_size, timing.modes"),
    ("methods.tome=1", "methods takes a value"),
    ("methods=[]", "methods must be a list of names"),
    ("methods=[1]", "methods must be a list of names"),
    ("methods=null", "methods must be a list of names"),
    ("methods=tom", "no 'tom' in methods. Did you mean 'tome'"),
    ("backbones=mini_clss", "no 'mini_clss' in backbones. Did you mean 'mini_cls'"),
    ("weights=3", "weights must be a list of names"),
    ("weights=nowhere.pth", "no weights at nowhere.pth"),
    ("shape=flat", "shape must be one of constant"),
    ("budget=[]", "the list is empty"),
    ("budget=null", "tome removes as much as it is told: give budget, r, keep_rate or tokens"),
    ("budget=[[0.5]]", "must be one share"),
    ("budget=[0.5,-0.5]", "budget must be above 0 and at most 1; got -0.5"),
    ("budget=1.5", "budget must be above 0 and at most 1; got 1.5"),
    ("budget=true", "got True"),
    ("budget=half", "got 'half'"),
    ("r=[8,-1]", "r must be 0 or more; got -1"),
    ("r=nan", "r must be 0 or more; got nan"),
    ("r=inf", "r must be 0 or more; got inf"),
    ("r=[[]]", "the list is empty"),
    ("r=1.5", "r must be a whole number of tokens, or a share"),
    ("keep_rate=0", "keep_rate must be above 0"),
    ("keep_rate=0.5", "keep_rate needs layers"),
    ("tokens=[9,8]", "tokens must be a list of lists"),
    ("tokens=[[9.5,8]]", "got 9.5"),
    ("layers=[]", "layers must be a list"),
    ("layers=3", "layers must be a list"),
    ("layers=[true]", "layers must be a list"),
    ("layers=[2]", "layers must be different numbers from 0 to 1"),
    ("options=5", "options must be given by parts"),
    ("options.tome=5", "options.tome.NAME=VALUE"),
    ("options.tome.matching=[]", "the list is empty"),
    ("options.tome.matching=nearest", "matching of tome must be one of bipartite, kth, random"),
    ("options.tome.proportional_attention=1", "proportional_attention of tome must be bool"),
    ("options.tome.fuse=true", "tome has no option 'fuse'"),
    ("options.evit.fuse=true", "add evit to them"),
    ("sizes=5", "sizes must be given by parts"),
    ("sizes.wings=2", "no 'wings' in sizes"),
    ("sizes.num_heads=5", "embed_dim must be a multiple of num_heads"),
    ("sizes.num_heads=0", "num_heads must be a whole number of at least 1; got 0"),
    ("sizes.depth=null", "depth must be a whole number of at least 1; got None"),
    ("sizes.mlp_ratio=-1", "mini_mean cannot be made"),
    ("sizes.img_size=32", "moving_shapes holds clips of shape"),
    ("data=moving_pictures", "no 'moving_pictures' in data. Did you mean 'moving_shapes'"),
    ("data=null", "no 'None' in data"),
    ("data=video_folder", "data.root must be given"),
    ("data.root=/tmp", "no 'root' in the options of moving_shapes"),
    ("data.num_clips=-1", "num_clips must be 1 or more"),
    ("data.num_clips=many", "num_clips of moving_shapes must be int"),
    ("data.num_clips=true", "num_clips of moving_shapes must be int"),
    ("data.split=trains", "split must be test, validation or train-SEED"),
    ("allow_clip=1", "allow_clip must be true or false"),
    ("seeds=0", "seeds must be at least 1"),
    ("seeds=true", "seeds must be a whole number"),
    ("batch_size=0", "batch_size must be at least 1"),
    ("batch_size=1.5", "batch_size must be a whole number"),
    ("workers=-1", "workers must be at least 0"),
    ("device=tpu", "device must be one of auto, cpu, cuda"),
    ("precision=8-bit", "precision must be one of 32-true"),
    ("timing=off", "timing must be given by parts"),
    ("timing.rounds=10", "timing.rounds must be 0 (no timing) or at least 20"),
    ("timing.rounds=-1", "rounds must be at least 0"),
    ("timing.batch_size=0", "timing.batch_size must be at least 1"),
    ("timing.batch_size=[8,0]", "timing.batch_size must be at least 1"),
    ("timing.batch_size=[]", "timing.batch_size must be a number or a list of numbers; the list is empty"),
    ("timing.batch_size=[[8]]", "timing.batch_size must be a whole number"),
    ("timing.modes=[]", "modes must be a list of names"),
    ("timing.modes=fast", "timing.modes must be one of eager, compiled, cuda_graph; got 'fast'"),
    ("plugins=[nowhere.py]", "no plugin file at "),
    ("task=translation", "no 'translation' in task. There are"),
    ("task=null", "no 'None' in task"),
    ("task=qa", "mini_mean is built for classification, not for qa"),
    ("match=evit", "match must be one of the methods, tome, or null; got 'evit'"),
    ("shortlist=0", "shortlist must be at least 1"),
    ("shortlist=many", "shortlist must be a whole number"),
    ("vocabulary=nowhere.txt", "vocabulary"),
    ("experiment=typo", "no 'typo' in experiment. There are"),
    ("out=${nothing}", "nothing"),
]


@pytest.mark.parametrize(("word", "said"), WRONG, ids=[word for word, _ in WRONG])
def test_a_wrong_setting_is_one_line_and_nothing_is_written(word, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = sweep(["methods=tome", "backbones=mini_mean", *TINY, word])
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert said in captured.err
    assert list(tmp_path.iterdir()) == []


def test_two_amounts_that_were_asked_for_are_refused():
    with pytest.raises(ValueError, match="give one of budget, r, keep_rate, tokens; got budget and r"):
        read_config(["budget=0.5", "r=8"])


# Counts that differ by sample


def test_calibration_needs_no_plus_and_keeps_its_types():
    assert read_config(["calibration.root=/a", "calibration.limit=64"]).calibration == {"root": "/a", "limit": 64}
    assert read_config(["calibration={root:/a}"]).calibration == {"root": "/a"}


def test_without_calibration_the_data_says_what_is_apart():
    assert read_config([]).calibration == {}


def test_no_budget_and_nothing_in_its_place_is_no_amount():
    assert read_config(["budget=null"]).amounts == [("own", None)]


@pytest.mark.parametrize("word", ["r=8", "keep_rate=0.7", "tokens=[[9,8]]"])
def test_no_budget_gives_way_to_another_amount(word):
    assert read_config(["budget=null", word]).amounts == read_config([word]).amounts


def test_no_budget_overrides_that_of_an_experiment(mine):
    mine("# @package _global_\nbudget: [0.7]\n")
    assert read_config(["experiment=mine", "budget=null"]).amounts == [("own", None)]
    assert read_config(["experiment=mine"]).amounts == [("budget", 0.7)]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("calibration=64", "calibration must be given by parts, as calibration.NAME=VALUE; got 64"),
        ("calibration.roots=/a", "no 'roots' in the options of moving_shapes"),
        ("calibration.num_clips=0", "num_clips must be 1 or more"),
    ],
)
def test_wrong_calibration_is_refused(word, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sweep(["methods=ltmp", "backbones=mini_mean", *TINY, "budget=[0.8]", word]) == 2
    assert said in (captured := capsys.readouterr().err) and captured.count("\n") == 1


# Nothing in a configuration is called


@pytest.mark.parametrize("word", ["options.tome._target_=os.system", "data._target_=os.system", "+_target_=os.system"])
def test_a_dotted_path_is_never_called(word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("it was called"))
    assert sweep(["methods=tome", *TINY, word]) == 2
    assert "no option '_target_'" in (said := capsys.readouterr().err) or "no '_target_' in" in said

"""What has changed since records were made: only what it touches runs again, and why is said."""

import pytest

from tokred import METHODS, list_methods
from tokred.record import Store
from tokred.sealed import write_json
from tokred.sweeps import drift as drifting
from tokred.sweeps import plan
from tokred.sweeps.cli import main, sweep

SIZES = ["sizes.depth=2", "sizes.embed_dim=24", "sizes.patch_size=16"]
WORDS = [
    *(*SIZES, "backbones=mini_mean", "weights=random"),
    *("methods=[tome,mine]", "r=[4,8]", "data.num_clips=2", "timing.rounds=0", "traces=0"),
]
MINE = '''
"""A method."""

import torch

from tokred import METHODS, Assignment, Method


@METHODS.register("mine")
class Mine(Method):
    def assign(self, tokens, attention, keep):
        return Assignment.select(torch.arange(keep).expand(len(tokens.x_BNC), keep), tokens.num)
'''


@pytest.fixture
def ran(tmp_path, monkeypatch, capsys):
    """A sweep with a method from a file; ``ran(*words)`` gives the lines of drift."""
    list_methods()
    monkeypatch.setattr(METHODS, "_classes", dict(METHODS._classes))
    monkeypatch.setattr("tokred.sweeps.cli._show", lambda *_: None)
    file, out = tmp_path / "mine.py", tmp_path / "run"
    file.write_text(MINE)
    words = [*WORDS, f"plugins={file}", f"out={out}"]
    assert sweep(words) == 0

    def lines(*words):
        capsys.readouterr()
        assert main(["drift", str(out), *SIZES, f"plugins={file}", *words]) == 0
        return capsys.readouterr().out.splitlines()

    lines.folder, lines.file, lines.words = out, file, words
    return lines


def test_where_nothing_changed_nothing_would_run(ran):
    assert ran() == [f"{ran.folder}: 5 cells planned: 5 as on disk, 0 changed and 0 new, which the sweep would run"]


def test_a_changed_method_is_named_and_its_cells_alone_run_again(ran, capsys):
    ran.file.write_text(MINE.replace("A method.", "Another."))
    METHODS._classes.pop("mine")
    said = ran()
    assert "3 as on disk, 2 changed and 0 new" in said[0]
    assert said[1:] == ["changed: the source of the method mine: mine r 4 (mini_mean), mine r 8 (mini_mean)"]
    assert sweep(ran.words) == 0
    done = [line for line in capsys.readouterr().out.splitlines() if line.endswith(": done")]
    assert done == [f"mini_mean (1/1): mine r {r}: done" for r in (4, 8)]


def test_changed_weights_and_a_changed_core_are_told_apart(ran, monkeypatch):
    monkeypatch.setattr(plan, "_core_hash", lambda: "another")
    monkeypatch.setattr(plan, "digest", lambda backbone: "others")
    (line,) = ran()[1:]
    assert line.startswith("changed: the weights and the source of tokred's core: none (mini_mean), ")


def test_other_words_are_new_cells_and_records_without_one(ran):
    said = ran("r=[8,12]")
    assert "3 as on disk, 0 changed and 2 new" in said[0]
    assert said[1:] == ["new: tome r 12 (mini_mean), mine r 12 (mini_mean)", "on disk and not planned: 2 records"]


def test_another_torch_is_said_and_runs_nothing_again(ran, monkeypatch, capsys):
    monkeypatch.setattr("torch.__version__", "9.0")
    was = Store(ran.folder).planned()[0].conditions["torch"]
    assert f"kept: 5 were made with torch {was}, now 9.0" in ran()
    assert sweep(ran.words) == 0
    assert f"5 of the cells were made with torch {was}, now 9.0; accuracies are not run again for that" in (
        capsys.readouterr().out
    )


def test_words_that_name_files_or_sizes_count_only_where_they_are_said_again(ran, capsys):
    capsys.readouterr()
    assert main(["drift", str(ran.folder)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.endswith(f"if it is right, add: {' '.join(SIZES)} plugins={ran.file}\n")


def test_words_without_files_need_not_be_said_again(ran):
    store = Store(ran.folder)
    harmless = [
        "backbones=[mini_mean,mini_cls]",
        "weights=random",
        "methods=[tome]",
        "r=8",
        "data.num_clips=2",
        "out=x",
    ]
    write_json(ran.folder / "plan.json", store.plan() | {"words": harmless})
    assert drifting.words_again(store, []) == harmless[:-1]


@pytest.mark.parametrize(
    "word",
    [
        *("plugins=[x.py]", "+plugins=[x.py]", "data.root=/etc", "data.csv=/etc/passwd", "calibration.root=/etc"),
        *("weights=x.pth", "weights=[random,x.pth]", "weights=pretrained", "vocabulary=/etc/passwd"),
        *(
            "backbones=hf/tmp",
            "backbones=[timm/vit_giant_patch14_224]",
            "sizes.depth=1000000",
            "data.num_clips=1000000",
        ),
        *("hydra.run.dir=/tmp", "--config-dir=/tmp", "~data", "word", ""),
    ],
)
def test_a_run_folder_alone_names_no_file_no_plugin_no_hub_and_no_size(ran, word):
    store = Store(ran.folder)
    write_json(ran.folder / "plan.json", store.plan() | {"words": [word]})
    with pytest.raises(ValueError, match="not opened, loaded or built on the word of a run folder alone"):
        drifting.words_again(store, [])


def test_a_run_that_did_not_keep_its_words_asks_for_them(capsys):
    from tests.test_record import GOLDEN

    first = GOLDEN / "run_schema_1"
    assert main(["drift", str(first)]) == 2
    said = capsys.readouterr().err
    assert "did not keep the words of its sweep; add them" in said and said.count("\n") == 1
    assert drifting.words_again(Store(first), ["r=8"]) == ["r=8"]


@pytest.mark.parametrize("words", [[], ["r=8"], ["nowhere"]])
def test_what_is_no_run_folder_is_one_line(words, capsys):
    assert main(["drift", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_every_part_of_a_key_has_a_name(ran):
    made_of = {name for record in Store(ran.folder).planned() for name in record.made_of}
    assert {"method", "family", "core", "weights", "data", "tokens"} <= made_of & drifting.PARTS.keys()

"""Annotation files written here, over one small video that is linked under many names."""

import json
import os
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from tests.videos import all_frames, write
from tokred.data import DATA, Preprocess, VideoCaptions, VideoQuestions, create_data, entries
from tokred.data.video import middle_frames, read_clip

SHAPE = (4, 3, 32, 48)
CONF = Path(__file__).parents[1] / "sweeps" / "conf" / "data"
NAMES = ("a.mp4", "b.mp4", "c.mp4", "d.mp4")
MSVD: list[dict] = [
    {"video": "a.mp4", "caption": ["A man walks.", "Someone walks"]},
    {"video": "b.mp4", "caption": "Two dogs"},
    {"video": "a.mp4", "caption": ["He stops!"]},
]
SSV2: list[dict] = [
    {"caption": "Folding [something]", "video": ["c.mp4", "a.mp4"]},
    {"caption": "Tearing", "video": "b.mp4"},
    {"caption": "Opening", "video": ["d.mp4", "a.mp4"]},
]
ASKED: list[dict] = [
    {"video": "b.mp4", "question": "What is it?", "answer": "dog", "question_id": 7},
    {"video": "a.mp4", "question": "Who walks?", "answer": "Man", "question_id": "8"},
    {"video": "b.mp4", "question": "How many?", "answer": "twelve", "question_id": 9},
]
ANSWERS = ["man", "dog", "two", "a big cat"]


@pytest.fixture(scope="session")
def video(tmp_path_factory) -> Path:
    """50 frames, 25 a second."""
    return write(tmp_path_factory.mktemp("video") / "whole.mp4", 50)


@pytest.fixture
def root(tmp_path: Path, video: Path) -> Path:
    add(tmp_path / "set" / "videos", video, *NAMES)
    return tmp_path / "set"


def add(folder: Path, video: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(video, folder / name)


def captions(root: Path, content, **options) -> VideoCaptions:
    (root / "list.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return VideoCaptions(root, **{"annotation": "list.json", "max_text_length": 32, **options})


def questions(root: Path, content, answers=ANSWERS, **options) -> VideoQuestions:
    (root / "list.json").write_text(json.dumps(content))
    (root / "answers.json").write_text(json.dumps(answers))
    return VideoQuestions(root, **{"annotation": "list.json", "answer_list": "answers.json", **options})


def paths(source) -> list[str]:
    return [source.path(index) for index in range(len(source))]


@contextmanager
def refused(text: str):
    """A ValueError whose message is one line and holds the text."""
    with pytest.raises(ValueError) as caught:
        yield
    assert text in str(caught.value) and "\n" not in str(caught.value)


# Captions


def test_every_entry_is_a_sample_also_where_two_name_one_video(root):
    source = captions(root, MSVD)
    assert paths(source) == ["a.mp4", "b.mp4", "a.mp4"] and len(source) == 3


def test_every_caption_is_a_query_of_its_entry(root):
    said = captions(root, MSVD).captions()
    assert said.texts == ("a man walks", "someone walks", "two dogs", "he stops")
    assert said.videos_of_text == ((0,), (0,), (1,), (2,)) and said.texts_of_video == ((0, 1), (2,), (3,))
    assert said.max_length == 32


def test_a_paragraph_is_joined_before_it_is_cleaned(root):
    said = captions(root, [{"video": "a.mp4", "caption": ["He -", "walks. ", "End"]}], paragraph=True).captions()
    assert said.texts == ("he walks end",) and said.videos_of_text == ((0,),)


def test_with_several_videos_the_samples_are_distinct_and_in_the_order_of_the_file(root):
    source = captions(root, SSV2, several_videos=True)
    assert paths(source) == ["c.mp4", "a.mp4", "b.mp4", "d.mp4"]
    said = source.captions()
    assert said.texts == ("folding [something]", "tearing", "opening")
    assert said.videos_of_text == ((0, 1), (2,), (3, 1)) and said.texts_of_video == ((0,), (0, 2), (1,), (2,))


def test_one_video_by_two_names_of_its_path_is_one_video(root):
    source = captions(root, [{"caption": "x", "video": ["a.mp4", "./a.mp4", "b.mp4"]}], several_videos=True)
    assert paths(source) == ["a.mp4", "b.mp4"] and source.captions().videos_of_text == ((0, 1),)


def test_other_fields_are_passed_over(root):
    assert len(captions(root, [{**MSVD[0], "id": 3, "duration": 1.5}])) == 1


def test_there_are_no_labels(root):
    for source in (captions(root, MSVD), questions(root, ASKED)):
        assert source.label(0) == -1 and not source.has_labels and source.classes == ()


def test_limit_takes_videos_evenly_and_the_texts_that_belong_to_them(root):
    source = captions(root, MSVD, limit=2)
    assert paths(source) == ["a.mp4", "b.mp4"]
    assert source.captions().texts == ("a man walks", "someone walks", "two dogs")
    source = captions(root, SSV2, several_videos=True, limit=2)
    assert paths(source) == ["c.mp4", "b.mp4"]
    assert source.captions().texts == ("folding [something]", "tearing")
    assert source.captions().videos_of_text == ((0,), (1,))


# Questions


def test_a_video_is_one_sample_for_all_its_questions(root):
    source = questions(root, ASKED)
    assert paths(source) == ["b.mp4", "a.mp4"]
    asked = source.questions()
    assert asked.texts == ("what is it", "who walks", "how many") and asked.video == (0, 1, 0)
    assert asked.answer == ("dog", "Man", "twelve") and asked.ids == ("7", "8", "9")
    assert asked.answers == tuple(ANSWERS) and (asked.max_length, asked.max_answer_length) == (25, 5)


def test_the_limit_of_questions_counts_videos(root):
    asked = questions(root, ASKED, limit=1).questions()
    assert asked.ids == ("7", "9") and asked.video == (0, 0) and asked.answers == tuple(ANSWERS)


def test_each_source_has_only_its_own_texts(root):
    with refused("video_captions holds no questions; choose data that has them"):
        captions(root, MSVD).questions()
    with refused("video_questions holds no captions; choose data that has them"):
        questions(root, ASKED).captions()


# Reading


def test_inputs_are_the_middle_frames_of_each_video(root, video):
    (batch,) = captions(root, MSVD[:2]).loader(SHAPE, Preprocess(), batch_size=4)
    expected = torch.from_numpy(read_clip(str(video), 4, SHAPE[-2:], Preprocess()))
    assert batch.problems == [] and batch.index_B.tolist() == [0, 1] and batch.label_B.tolist() == [-1, -1]
    std, mean = torch.tensor([0.229, 0.224, 0.225]), torch.tensor([0.485, 0.456, 0.406])
    pixels = (batch.inputs * std[:, None, None] + mean[:, None, None]) * 255
    assert torch.equal(pixels.round().byte(), expected.expand(2, *SHAPE))


def test_max_seconds_is_of_the_start_of_the_video(root, video):
    """1.2 s of 25 frames a second are 30 frames; of 50, with 4 wanted, 3, 10, 18, 25 instead of 5, 18, 30, 43."""
    own = Preprocess(mean=(0, 0, 0), std=(1, 1, 1))
    (batch,) = captions(root, MSVD[:1], max_seconds=1.2).loader((4, 3, 64, 96), own, batch_size=1)
    frames = all_frames(video)
    assert torch.equal((batch.inputs[0] * 255).round().byte(), frames[[3, 10, 18, 25]])
    (batch,) = captions(root, MSVD[:1], max_seconds=2).loader((4, 3, 64, 96), own, batch_size=1)
    assert torch.equal((batch.inputs[0] * 255).round().byte(), frames[middle_frames(50, 4)])


def test_a_broken_video_is_a_problem(root):
    (root / "videos" / "b.mp4").unlink()
    (root / "videos" / "b.mp4").write_bytes(b"broken")
    (batch,) = captions(root, MSVD).loader(SHAPE, Preprocess(), batch_size=4)
    assert batch.index_B.tolist() == [0, 2] and [problem.path for problem in batch.problems] == ["b.mp4"]


def test_the_videos_can_be_in_root_itself_or_behind_a_linked_folder(root, tmp_path, video):
    add(tmp_path / "flat", video, "a.mp4")
    assert paths(captions(tmp_path / "flat", MSVD[:1], videos=".")) == ["a.mp4"]
    (root / "link").symlink_to(tmp_path / "flat")
    assert paths(captions(root, MSVD[:1], videos="link")) == ["a.mp4"]


def test_an_annotation_can_be_elsewhere(root, tmp_path):
    (tmp_path / "there.json").write_text(json.dumps(MSVD))
    assert len(captions(root, [], annotation=str(tmp_path / "there.json"))) == 3


@pytest.mark.parametrize(
    ("named", "extension", "there"),
    [("1.webm", ".mp4", "1.mp4"), ("v_x", ".mkv", "v_x.mkv"), ("v.x1", ".mp4", "v.x1.mp4"), ("1.MOV", ".mp4", "1.mp4")],
)
def test_files_can_have_another_extension_than_the_annotation_says(root, video, named, extension, there):
    add(root / "videos", video, there)
    assert paths(captions(root, [{"video": named, "caption": "x"}], extension=extension)) == [there]


# What is refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "list.json must be a JSON file in UTF-8: "),
        ("", "list.json must be a JSON file in UTF-8: "),
        ("[" * 200_000, "list.json must be a JSON file in UTF-8: "),
        ({"a": 1}, "list.json must hold a list, as UMT's annotation files do, not dict"),
        ([], "list.json must hold a list, as UMT's annotation files do, not an empty one"),
        ([MSVD[0], "b.mp4"], "list.json[1] must be an object with fields, not str"),
        ([MSVD[0], {"caption": "x"}], "list.json[1] must have a field 'video', but it has 'caption'"),
        ([MSVD[0], {"video": "b.mp4"}], "list.json[1] must have a field 'caption', but it has 'video'"),
        ([{"video": 5, "caption": "x"}], "list.json[0]: video must be one path"),
        ([{"video": ["a.mp4"], "caption": "x"}], "several_videos=true of video_captions, not ['a.mp4']"),
        ([{"video": "a.mp4", "caption": {"x": 1}}], "[0]: caption must be a string or a list of strings, not {'x': 1}"),
        ([{"video": "a.mp4", "caption": 5}], "[0]: caption must be a string or a list of strings, not 5"),
        ([{"video": "a.mp4", "caption": []}], "[0]: caption must be a string or a list of strings, not []"),
        ([{"video": "a.mp4", "caption": ["x", 5]}], "[0]: caption must be a string or a list of strings, not ['x', 5]"),
        (
            [{"video": "a.mp4", "caption": "?!"}],
            "[0]: caption must be text of which something is left when it is cleaned, not '?!'",
        ),
    ],
)
def test_captions_that_cannot_be_understood_are_refused(root, content, message):
    with refused(message):
        captions(root, content)


def test_a_paragraph_of_a_single_string_is_refused(root):
    with refused("[1]: caption must be a list of sentences with paragraph=true, not 'Two dogs'"):
        captions(root, MSVD, paragraph=True)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"video": ["a.mp4"], "caption": ["x"]}, "[0]: caption must be a string, not ['x']"),
        ({"video": [], "caption": "x"}, "[0]: video must be a string or a list of strings, not []"),
        ({"video": ["a.mp4", None], "caption": "x"}, "[0]: video must be a string or a list of strings"),
    ],
)
def test_several_videos_that_cannot_be_understood_are_refused(root, entry, message):
    with refused(message):
        captions(root, [entry], several_videos=True)


@pytest.mark.parametrize("path", ["../out.mp4", "x/../../out.mp4", "link.mp4", "folder/out.mp4", ".", "", "a.mp4\0"])
def test_a_path_that_leaves_the_videos_is_refused(root, video, path):
    add(root, video, "out.mp4")
    (root / "videos" / "link.mp4").symlink_to(root / "out.mp4")
    (root / "videos" / "folder").symlink_to(root)
    for make, entry in ((captions, MSVD[0]), (questions, ASKED[0])):
        with refused(f"list.json[0]: {path!r} leads out of {root / 'videos'}; a video's path must be relative"):
            make(root, [{**entry, "video": path}])


def test_an_absolute_path_is_refused(root):
    with refused("a video's path must be relative and stay inside"):
        captions(root, [{"video": str(root / "videos" / "a.mp4"), "caption": "x"}])


def test_the_path_with_its_new_extension_is_the_one_that_is_checked(root, video):
    add(root, video, "out.mp4")
    (root / "videos" / "link.mp4").symlink_to(root / "out.mp4")
    with refused("'link.mp4' leads out of"):
        captions(root, [{"video": "link.webm", "caption": "x"}], extension=".mp4")


def test_missing_videos_are_counted_and_the_first_is_named(root):
    content = [*MSVD, {"video": "y.mp4", "caption": "x"}, {"video": "x.mp4", "caption": "x"}]
    with refused(
        f"2 of the 5 videos of list.json are not in {root / 'videos'}, the first is 'y.mp4'; check root and videos"
    ):
        captions(root, content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question_id": 7}, "[3]: question_id 7 is that of"),
        ({"question_id": "7"}, "[3]: question_id '7' is that of"),
        ({"question_id": 1.5}, "[3]: question_id must be a string or a whole number, not 1.5"),
        ({"question_id": True}, "[3]: question_id must be a string or a whole number, not True"),
        ({"question": ["x"]}, "[3]: question must be a string, not ['x']"),
        ({"question": "?"}, "[3]: question must be text of which something is left when it is cleaned, not '?'"),
        (
            {"answer": ["dog", "cat"]},
            "[3]: answer must be one string; a list of them is for training, not ['dog', 'cat']",
        ),
        ({"answer": 2}, "[3]: answer must be a string, not 2"),
        ({"video": ["a.mp4"]}, "[3]: video must be one path"),
        ({"video": "z.mp4"}, "1 of the 3 videos of list.json are not in"),
    ],
)
def test_questions_that_cannot_be_understood_are_refused(root, change, message):
    with refused(message):
        questions(root, [*ASKED, {"video": "a.mp4", "question": "x", "answer": "y", "question_id": 10, **change}])


@pytest.mark.parametrize("name", ["video", "question", "answer", "question_id"])
def test_a_question_without_a_field_is_refused(root, name):
    with refused(f"list.json[0] must have a field {name!r}"):
        questions(root, [{key: value for key, value in ASKED[0].items() if key != name}])


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (["a", "b", "a"], "answers.json[2]: 'a' is there already, at [0]; an answer is named once"),
        (["a", ["b"]], "answers.json[1] must be a string, not ['b']; an answer list is flat"),
        ({"a": 0}, "answers.json must hold a list"),
        ([], "answers.json must hold a list"),
    ],
)
def test_an_answer_list_that_cannot_be_understood_is_refused(root, answers, message):
    with refused(message):
        questions(root, ASKED, answers)


def test_a_file_that_is_not_there_is_refused(root, tmp_path):
    with refused(f"there is no file {root / 'no.json'}; a relative path is looked for in root"):
        captions(root, MSVD, annotation="no.json")
    with refused(f"there is no file {root / 'no.json'}"):
        questions(root, ASKED, answer_list="no.json")
    with refused("root of video_captions must be a folder, but there is none at"):
        VideoCaptions(tmp_path / "no", "list.json", 32)
    with refused(f"videos of video_captions must be a folder, but there is none at {root / 'movies'}"):
        captions(root, MSVD, videos="movies")


def test_a_file_above_the_cap_is_not_read(root, monkeypatch):
    monkeypatch.setattr(entries, "MAX_BYTES", 20)
    with refused("bytes, more than the 20 that are read"):
        captions(root, MSVD)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit must be 1 or more"),
        ({"max_seconds": 0.0}, "max_seconds must be above 0, or None for the whole video, not 0.0"),
        ({"max_seconds": float("nan")}, "max_seconds must be above 0"),
        ({"max_seconds": float("inf")}, "max_seconds must be above 0"),
        ({"max_text_length": 1}, "max_text_length must be 2 or more, not 1"),
        ({"extension": "mp4"}, "extension must be one of .mp4, .m4v"),
        ({"paragraph": True, "several_videos": True}, "paragraph joins the captions of a video"),
    ],
)
def test_an_option_out_of_range_is_refused(root, options, message):
    with refused(message):
        captions(root, MSVD, **options)


def test_two_word_pieces_are_enough(root):
    assert captions(root, MSVD, max_text_length=2).captions().max_length == 2


# digest and description


@pytest.mark.parametrize(
    ("make", "content", "options"),
    [
        (captions, MSVD, {"paragraph": False, "max_seconds": 1.5, "limit": 2, "extension": ".mp4", "videos": "videos"}),
        (captions, SSV2, {"several_videos": True}),
        (questions, ASKED, {"limit": 1, "max_answer_length": 7}),
    ],
)
def test_a_description_makes_the_source_again(root, make, content, options):
    source = make(root, content, **options)
    again = create_data(**json.loads(json.dumps(source.description())))
    assert again.description() == source.description() and again.digest() == source.digest()
    assert set(source.description()) - {"name"} == set(create_options(source))


def create_options(source) -> list[str]:
    parameters = type(source).__init__.__annotations__
    return [name for name in parameters if name != "return"]


def test_the_digest_is_of_the_content_not_of_the_place(root, tmp_path):
    first = captions(root, MSVD).digest(), questions(root, ASKED).digest()
    root.rename(tmp_path / "elsewhere")
    assert (captions(tmp_path / "elsewhere", MSVD).digest(), questions(tmp_path / "elsewhere", ASKED).digest()) == first


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ([{**MSVD[0], "caption": ["a man walks", "somebody walks"]}, *MSVD[1:]], {}),
        (MSVD[:2], {}),
        ([MSVD[1], MSVD[0], MSVD[2]], {}),
        (MSVD, {"max_text_length": 31}),
        (MSVD, {"max_seconds": 1.0}),
        (MSVD, {"limit": 2}),
    ],
)
def test_the_digest_changes_with_what_changes_a_result(root, content, options):
    assert captions(root, content, **options).digest() != captions(root, MSVD).digest()


def test_the_digest_changes_with_a_video(root):
    first = captions(root, MSVD).digest()
    (root / "videos" / "b.mp4").unlink()
    (root / "videos" / "b.mp4").write_bytes(b"other")
    assert captions(root, MSVD).digest() != first


@pytest.mark.parametrize(
    ("change", "answers", "options"),
    [
        ({"answer": "cat"}, ANSWERS, {}),
        ({"question": "what else"}, ANSWERS, {}),
        ({"question_id": 70}, ANSWERS, {}),
        ({"video": "c.mp4"}, ANSWERS, {}),
        ({}, ANSWERS[::-1], {}),
        ({}, ANSWERS, {"max_question_length": 24}),
        ({}, ANSWERS, {"max_answer_length": 4}),
    ],
)
def test_the_digest_of_questions_changes_with_what_changes_a_result(root, change, answers, options):
    changed = questions(root, [{**ASKED[0], **change}, *ASKED[1:]], answers, **options)
    assert changed.digest() != questions(root, ASKED).digest()


def test_the_same_seconds_are_the_same_data(root):
    assert captions(root, MSVD, max_seconds=30).description() == captions(root, MSVD, max_seconds=30.0).description()


# By name

FLAT = [{"video": "a.mp4", "caption": "x"}]
LISTS = [{"video": "a.mp4", "caption": ["x", "y"]}]
SETS = [{"video": ["a.mp4", "b.mp4"], "caption": "x"}]
OFFICIAL = {  # annotation, max_text_length, an entry of its kind, the texts it gives (the configs of mlvlab/vid-TLDR)
    "msrvtt_ret": ("msrvtt_ret_test1k.json", 32, FLAT, ("x",)),
    "msvd_ret": ("msvd_ret_test.json", 64, LISTS, ("x", "y")),
    "anet_ret": ("anet_ret_val.json", 150, LISTS, ("x y",)),
    "didemo_ret": ("didemo_ret_test.json", 64, LISTS, ("x y",)),
    "lsmdc_ret": ("lsmdc_ret_test_1000.json", 96, FLAT, ("x",)),
    "ssv2_label_ret": ("ssv2_ret_label_val_small.json", 25, SETS, ("x",)),
    "ssv2_template_ret": ("ssv2_ret_template_val_small.json", 25, SETS, ("x",)),
}


def conf(name: str, root: Path) -> dict:
    config = OmegaConf.load(CONF / f"{name}.yaml")
    config.root = str(root)
    return OmegaConf.to_container(config)


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_official_retrieval_sets_are_configured_as_umt_does(root, name):
    annotation, max_text_length, content, texts = OFFICIAL[name]
    (root / annotation).write_text(json.dumps(content))
    source = create_data(**conf(name, root))
    assert source.captions().texts == texts and source.captions().max_length == max_text_length
    assert source.description()["max_seconds"] == (30 if name == "didemo_ret" else None)


@pytest.mark.parametrize("name", ["msrvtt_qa", "msvd_qa"])
def test_the_official_question_sets_are_configured_as_umt_does(root, name):
    (root / f"{name}_test.json").write_text(json.dumps(ASKED))
    (root / f"{name}_answer_list.json").write_text(json.dumps(ANSWERS))
    asked = create_data(**conf(name, root)).questions()
    assert len(asked.texts) == 3 and (asked.max_length, asked.max_answer_length) == (25, 5)


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_of_data_names_a_source_and_all_of_its_options(path):
    written = OmegaConf.to_container(OmegaConf.load(path))
    assert set(written) - {"name"} == set(DATA[written["name"]].__init__.__annotations__) - {"return"}


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("paragraph", 1, "bool"),
        ("paragraph", "true", "bool"),
        ("max_seconds", "30", "float | None"),
        ("max_seconds", True, "float | None"),
        ("max_text_length", True, "int"),
        ("max_text_length", 32.0, "int"),
        ("extension", 4, "str | None"),
        ("videos", None, "str"),
    ],
)
def test_an_option_of_the_wrong_type_is_refused(root, option, value, wanted):
    with refused(f"{option} of video_captions must be {wanted}, not {value!r}"):
        create_data(
            **{"name": "video_captions", "root": str(root), "annotation": "x", "max_text_length": 32, option: value}
        )


def test_a_whole_number_is_a_number_of_seconds(root):
    captions(root, MSVD)
    made = create_data("video_captions", root=root, annotation="list.json", max_text_length=32, max_seconds=30)
    assert made.description()["max_seconds"] == 30.0

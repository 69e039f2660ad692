"""What somebody else's files may hold to do harm, made on the spot, and what reads them; ``python hostile.py FOLDER`` tries all, in
a process of little memory, and prints how each ended.
"""

import io
import json
import os
import pickle
import resource
import shutil
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tokred.data import create_data
from tokred.data.entries import read_answers
from tokred.data.loading import fit
from tokred.data.pictures import read_picture
from tokred.data.video import read_clip
from tokred.data.views import fit_short_side
from tokred.preprocess import HALVES, Preprocess
from tokred.record import Store
from tokred.sealed import write_json
from tokred.sweeps.config import read_config
from tokred.sweeps.drift import words_again
from tokred.sweeps.plan import make_plan
from tokred.tokenizer import WordPieces
from tokred.weights import read_state

EXAMPLE = Path(__file__).parents[1] / "analysis" / "example_run"
MEMORY = 2**30  # above what the process has when it begins
PREPROCESS = Preprocess(mean=HALVES, std=HALVES, crop_pct=0.9)
ATTACKS: dict[str, Callable[[Path], object]] = {}


def attack(function):
    """Makes its files in a folder of its own, then has them read. ``canary`` beside that folder must never come to be."""
    ATTACKS[function.__name__] = function
    return function


class Runs:
    """Unpickled, it writes the canary."""

    def __init__(self, folder):
        self.canary = folder.parent / "canary"

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


# Checkpoints


@attack
def pickle_in_a_checkpoint(folder):
    torch.save({"model": {"weight": Runs(folder)}}, folder / "a.pth")
    return read_state(folder / "a.pth")


@attack
def pickle_in_an_old_checkpoint(folder):
    torch.save({"weight": Runs(folder)}, folder / "a.pth", _use_new_zipfile_serialization=False)
    return read_state(folder / "a.pth")


@attack
def bare_pickle(folder):
    (folder / "a.pth").write_bytes(pickle.dumps(Runs(folder)))
    return read_state(folder / "a.pth")


@attack
def pickle_called_safetensors(folder):
    torch.save({"weight": Runs(folder)}, folder / "a.safetensors")
    return read_state(folder / "a.safetensors")


@attack
def compressed_checkpoint(folder):
    torch.save({"weight": torch.zeros(2**20)}, folder / "a.pth")
    with zipfile.ZipFile(folder / "a.pth") as old, zipfile.ZipFile(folder / "b.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return read_state(folder / "b.pth")


@attack
def tensor_of_a_trillion_elements(folder):
    torch.save({"weight": torch.zeros(1).expand(10**12)}, folder / "a.pth")
    return read_state(folder / "a.pth")


@attack
def safetensors_that_lie(folder):
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    (folder / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    return read_state(folder / "a.safetensors")


@attack
def safetensors_with_a_header_without_end(folder):
    (folder / "a.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{" + bytes(16))
    return read_state(folder / "a.safetensors")


@attack
def vocabulary_of_a_gigabyte(folder):
    sparse(folder / "vocab.txt", 2**30)
    return WordPieces.read(folder / "vocab.txt")


# The words of a sweep


def word(name, *words):
    def read(folder):
        return make_plan(config := read_config(["weights=random", *words]), create_data(**config.data))

    ATTACKS[name] = read


word("dotted_path", "options.tome._target_=os.system")
word("dotted_path_as_data", "+data._target_=os.system")
word("dotted_path_as_size", "sizes._target_=os.system")
word("variable_of_the_environment", "out=${oc.env:HOME}")
word("variable_of_the_environment_in_a_list", "methods=[tome,'${oc.env:HOME}']")
word("resolver", "out=${oc.decode:'[1]'}")
word("launcher", "hydra/launcher=joblib")
word("folder_of_hydra", "hydra.run.dir=elsewhere")
word("folder_of_configs", "--config-dir=elsewhere")
word("config_elsewhere", "experiment=../../elsewhere")
word("config_elsewhere_as_data", "data=/etc/passwd")
word("deep_word", "r=" + "[" * 3000 + "1" + "]" * 3000)
word("less_deep_word", "options.tome.x=" + "[" * 200 + "1" + "]" * 200)
word("long_word", "r=[" + "1," * 10**5 + "1]")
word("billion_cells", "seeds=1000000000")
word("product_of_lists", *(f"options.tome.x{number}=[1,2,3,4,5,6,7,8,9]" for number in range(12)))


# Annotations and lists


def questions(folder, text):
    (folder / "videos").mkdir()
    (folder / "answers.json").write_text('["a"]')
    (folder / "all.json").write_text(text)
    return create_data("video_questions", root=str(folder), annotation="all.json", answer_list="answers.json")


def question(**changed):
    return json.dumps([{"video": "a.mp4", "question": "what", "answer": "a", "question_id": 0} | changed])


@attack
def deep_annotation(folder):
    return questions(folder, "[" * 10**6)


@attack
def number_without_end(folder):
    return questions(folder, "[" + "9" * 10**6 + "]")


@attack
def question_without_a_number(folder):
    return questions(folder, question(question_id=float("nan")))


@attack
def absolute_path_in_an_annotation(folder):
    return questions(folder, question(video="/etc/passwd"))


@attack
def path_out_of_the_root_in_an_annotation(folder):
    return questions(folder, question(video="../../canary"))


@attack
def annotation_of_a_gigabyte(folder):
    sparse(folder / "answers.json", 2**30)
    return read_answers(str(folder / "answers.json"))


@attack
def csv_of_a_gigabyte(folder):
    sparse(folder / "all.csv", 2**30)
    return create_data("image_folder", root=str(folder), csv=str(folder / "all.csv"))


@attack
def path_out_of_the_root_in_a_csv(folder):
    (folder / "all.csv").write_text("/etc/passwd,0\n")
    return create_data("image_folder", root=str(folder), csv=str(folder / "all.csv"))


@attack
def link_out_of_a_folder(folder):
    (folder / "a.png").symlink_to("/etc/passwd")
    return create_data("image_folder", root=str(folder))


# Pictures and videos


@attack
def postscript_called_a_picture(folder):
    (folder / "a.png").write_text(
        f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({folder.parent}/canary) (w) file\n"
    )
    return read_picture(str(folder / "a.png"))


@attack
def picture_of_billions_of_pixels(folder):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return read_picture(str(folder / "a.png"))


@attack
def line_that_is_fitted_to_a_square(folder):
    Image.new("L", (1, 65000)).save(folder / "a.png")
    return fit(read_picture(str(folder / "a.png")), (224, 224), PREPROCESS)


@attack
def line_in_a_video(folder):
    return fit_short_side(np.zeros((8192, 2, 3), np.uint8), 224)


def playlist(name, text):
    def read(folder):
        (folder / "a.mp4").write_text(text.format(secret="/etc/passwd"))
        return read_clip(str(folder / "a.mp4"), 4, (32, 32), PREPROCESS)

    ATTACKS[name] = read


playlist("playlist_of_files", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n")
playlist("playlist_of_addresses", "#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n")
playlist("list_to_join", "ffconcat version 1.0\nfile {secret}\n")
playlist(
    "session_of_a_network", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
)
playlist("manifest", '<?xml version="1.0"?><MPD type="static"><Period><BaseURL>{secret}</BaseURL></Period></MPD>')


# Run folders


def run_with(folder):
    shutil.copytree(EXAMPLE, folder / "run", ignore=shutil.ignore_patterns("figures", "*.csv"))
    cells = folder / "run" / "cells"
    key = sorted(cells.glob("*.predictions.npz"))[0].name.partition(".")[0]
    return folder / "run", cells / f"{key}.json", cells / f"{key}.predictions.npz", key


def archive(name, entry, method=zipfile.ZIP_DEFLATED, change=lambda content: content):
    """An attack by the arrays of a cell. ``change`` of the file's bytes."""

    def read(folder):
        run, _, path, key = run_with(folder)
        with zipfile.ZipFile(file := io.BytesIO(), "w", method) as packed:
            packed.writestr("index.npy", entry(folder))
        path.write_bytes(change(file.getvalue()))
        return Store(run).predictions(key)

    ATTACKS[name] = read


def npy(header, values=b""):
    text = f"{header}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + values


def numbers(shape, values=b""):
    return npy(f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}", values)


def objects(folder):
    np.save(file := io.BytesIO(), np.array([Runs(folder)], dtype=object), allow_pickle=True)
    return file.getvalue()


def claiming(num_bytes):
    """In the directory at the end, an entry has as many bytes when it is unpacked."""

    def change(content):
        place = content.rindex(b"PK\x01\x02") + 24
        return content[:place] + struct.pack("<I", num_bytes) + content[place + 4 :]

    return change


archive("arrays_of_objects", objects)
archive("arrays_that_unpack_to_gigabytes", lambda _: numbers((8,), bytes(64)), change=claiming(2**32 - 2))
archive("arrays_that_unpack_to_more_than_they_say", lambda _: numbers((10**7,), bytes(8 * 10**7)), change=claiming(100))
archive("header_of_a_trillion_numbers", lambda _: numbers((10**12,)))
archive("header_that_nests", lambda _: npy("(" * 4000 + ")" * 4000))
archive("header_of_signs", lambda _: numbers("(" + "-" * 9000 + "1,)"))
archive("arrays_packed_in_another_way", lambda _: numbers((8,), bytes(64)), zipfile.ZIP_LZMA)


@attack
def deep_record(folder):
    run, path, _, key = run_with(folder)
    path.write_text('{"key": ' + "[" * 10**6)
    return Store(run).get(key)


@attack
def record_of_a_gigabyte(folder):
    run, path, _, key = run_with(folder)
    sparse(path, 2**30)
    return Store(run).get(key)


@attack
def record_under_the_name_of_another(folder):
    run, path, _, key = run_with(folder)
    shutil.copy(next(other for other in run.glob("cells/*.json") if other != path), path)
    return Store(run).get(key)


@attack
def key_that_leads_out(folder):
    run, *_ = run_with(folder)
    write_json(run / "plan.json", {"keys": ["../../../canary"], "timings": []})
    return Store(run).planned()


@attack
def plan_without_keys(folder):
    run, *_ = run_with(folder)
    write_json(run / "plan.json", {"keys": 3})
    return Store(run).planned()


@attack
def link_in_a_run_folder(folder):
    run, path, *_ = run_with(folder)
    path.unlink()
    path.symlink_to("/etc/passwd")
    return Store(run)


@attack
def folder_of_a_run_that_is_elsewhere(folder):
    run, *_ = run_with(folder)
    (folder / "elsewhere").mkdir()
    (run / "tables").symlink_to(folder / "elsewhere")
    return Store(run)


@attack
def log_of_a_run_that_is_elsewhere(folder):
    run, *_ = run_with(folder)
    (run / "logs").mkdir()
    (run / "logs" / "cells-0.log").symlink_to(folder / "elsewhere")
    return Store(run)


@attack
def loggers_folder_of_a_run_that_is_elsewhere(folder):
    run, *_ = run_with(folder)
    (run / "logs").mkdir()
    (run / "logs" / "csv").symlink_to(folder)
    return Store(run)


@attack
def pipe_in_a_run_folder(folder):
    run, path, *_ = run_with(folder)
    path.unlink()
    os.mkfifo(path)
    return Store(run)


@attack
def folder_in_the_place_of_a_claim(folder):
    run, *_ = run_with(folder)
    (run / "claims" / "sweep-0.0").mkdir(parents=True)
    return Store(run)


@attack
def plugin_named_by_a_run_folder(folder):
    run, *_ = run_with(folder)
    (folder / "plugin.py").write_text(f"open({str(folder.parent / 'canary')!r}, 'w')")
    write_json(run / "plan.json", {"keys": [], "timings": [], "words": [f"plugins=[{folder / 'plugin.py'}]"]})
    return words_again(Store(run), [])


def sparse(path, num_bytes):
    with open(path, "wb") as file:
        file.truncate(num_bytes)


def main(folder, names):
    """{attack: [how it ended, seconds, whether the canary is there]}, of these or all"""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    ended = {}
    for name in names or ATTACKS:
        (own := folder / name).mkdir()
        began = time.monotonic()
        try:
            ATTACKS[name](own)
            how = "read"
        except Exception as error:  # which one is for the tests to judge
            how = f"{type(error).__name__}: {error}"
        ended[name] = (how, time.monotonic() - began, (folder / "canary").exists())
    print(json.dumps(ended))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

"""The command line: ``tokred sweep`` (in a clone: ``python sweep.py``), ``profile``, ``status``, ``drift``, ``list``, ``power``.

Exit codes: 0 all cells done (or refused with a reason), 2 the command cannot be understood or a file not be written, 3 some cells
failed, 4 all did, 130 stopped by Ctrl+C, 141 stopped because nobody reads what it writes.
"""

import fnmatch
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tokred.open_files import OpenFiles
from tokred.registry import BACKBONES, METHODS, Registry, load_file
from tokred.sweeps.streams import CLOSED_PIPE, drop_output, open_streams, printer, tell
from tokred.sweeps.supervisor import end_server, supervised
from tokred.sweeps.watch import Watch
from tokred.terminal import plain

if TYPE_CHECKING:  # the supervisor of a sweep has no use for torch
    from tokred.model import Method
    from tokred.record import Store
    from tokred.sweeps.run import Tally

USAGE = """\
usage: tokred sweep [KEY=VALUE ...]   compare methods: accuracy, MACs, speed   (in a clone: python sweep.py [KEY=VALUE ...])
       tokred profile [KEY=VALUE ...] where the time of each model goes, by layer and part
       tokred report RUN              the report of a run folder again: report.html, report.md, tables for papers
       tokred report RUN_A RUN_B      what changed from the one to the other   [out=FILE.html]
       tokred status RUN_DIR          how a sweep stands, also while it runs
       tokred drift RUN_DIR [...]     what its command would run again, and what has changed since
       tokred compact RUN_DIR [...]   all cells as one typed table, RUN_DIR/results.parquet, for pandas, polars, DuckDB
       tokred list [PATTERN]          methods and backbones, a line each
       tokred list --markdown         the methods in full, as docs/methods.md
       tokred power n=N discordant=D  the smallest difference that N samples will show, where methods disagree on a share D
                    [comparisons=M]   (on one backbone: about 0.06); as one of M comparisons in a report
"""

HELP = """\
python sweep.py [KEY=VALUE ...]        (installed: tokred sweep [KEY=VALUE ...])

Compares token-reduction methods: accuracy with intervals, exact MACs, measured speed-up. Every combination of the
axes is a cell; the unreduced model is always run with them. The same command again goes on where it was.

  python sweep.py "methods=[vid_tldr,tome]"
  python sweep.py task=retrieval "methods=[vid_tldr,tome]"
  python sweep.py "methods=[tome,evit]" "backbones=[timm/vit_small_patch16_224]" weights=pretrained \\
      data=image_folder data.root=PICTURES
  python sweep.py "methods=[vid_tldr]" "backbones=[umt_base_patch16_224]" "r=[[600,200,100]]" weights=random \\
      data=video_folder data.root=VIDEOS

Task: task=classification, retrieval (videos by texts and texts by videos) or qa (questions about videos)
  vocabulary   the path of a vocab.txt, for backbones that read texts; pretrained: BERT's from the hub; null: their own
  shortlist    how many candidates retrieval and qa look at closely; null: as the data set's own evaluation has it

Axes: give one value, or a list of values.
  methods      names, or all (below)
  options      options.METHOD.NAME=VALUE, as options.tome.proportional_attention=[true,false]
  backbones    names (below); sizes.NAME=VALUE overrides their dimensions, as sizes.num_frames=8
  weights      embedded (with tokred, as those of the small models), pretrained (from the Hugging Face hub), random, or the path
               of a .safetensors or .pth file
  How much, one of:
  budget       shares of the unreduced model's MACs, the method's own included: budget=[0.8,0.5]
  r            tokens removed in each layer; below 1, a share of them: r=[8,13]; one number for each layer: r=[[600,200]]
  keep_rate    share of the tokens kept at each of layers: keep_rate=[0.7] layers=[3,6,9]
  tokens       tokens that leave each layer: tokens=[[256,128,128,64,64,64]]
  shape        of budgets: {shapes}
  layers       where tokens go, from 0: layers=[3,6,9], or a list of such lists; several of them, or of shapes, make a heat-map
  match        a method: the others also run with as many MACs as it spends on the same amount: r=[[60,20]] match=vid_tldr
  seeds        how many draws of a random method: seeds=3
  calibration  where counts differ by sample, the data a budget is met on: calibration.root=FOLDER calibration.limit=64
               (budget=null: such methods do as their options say)

Data: data=NAME data.KEY=VALUE
{data}  or a published set, in the folder data.root=FOLDER:
{sets}

Speed, beside the unreduced model in the same rounds: timing.rounds=20 (0: none)
  timing.batch_size   timing.batch_size=[1,8,32]: the same for all models, and dropped for all where one runs out of memory
  timing.modes        eager, compiled (torch.compile, one graph), cuda_graph; ratios are to the unreduced model in the same mode
                      The table shows the first mode and batch size; timings.csv all of them, with latency and peak memory

Others: batch_size, workers (processes that read data ahead), cells_per_pass (that share one reading of the data), device (auto,
  cpu, cuda), precision (32-true, bf16-mixed, 16-mixed), traces (samples whose tokens are followed, for the figures of what is
  kept; 0: none), allow_clip, out (run folder), plugins (Python files of your own), timeout (seconds that a cell may take without
  any progress), retry (retry=failed: also the cells that failed before), devices (that share a pass over the data)
More than one process: executor=local, ray or slurm, processes=2; each asks for resources.cpus, .gpus, .memory_gb;
  slurm.partition, slurm.time (minutes), slurm.account, slurm.qos, slurm.constraint, slurm.gres, ... as sbatch has them
  loggers      csv, tensorboard, wandb: each finished cell is a run in RUN/logs, with the numbers of results.csv; loggers=[]: none
               wandb stays offline unless WANDB_MODE=online
Experiments: experiment=NAME, one of
{experiments}

{plugins}"""

PROFILE_HELP = """\
tokred profile [KEY=VALUE ...]

Where the time goes: for each model, milliseconds by layer of attention, its statistics, matching, merging and MLP; then its
speed-up by multiply-adds beside the measured one, and the reduction's share of the time. The words and the models are those
of `tokred sweep KEY=VALUE ...`, whose --help explains them.

  tokred profile "methods=[vid_tldr]" "backbones=[umt_base_patch16_224]" sizes.num_frames=12 "r=[[600,200,100]]" \\
      weights=random timing.batch_size=1
  tokred profile "methods=[tome]" "backbones=[timm/vit_base_patch16_224]" r=13 weights=random

  timing.batch_size   samples in the batch
  timing.rounds       of the speed-up; 0: only where the time goes
  data                by default moving shapes, or noise for backbones of another shape
  out                 a folder for the same numbers as profile.csv; by default nothing is written

  attention    norm, projections, products, residual          statistics   what attention takes longer with them
  matching     who joins whom (a method's assign)             merging      sums, gathers and all else of the reduction
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``tokred``."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["sweep"]:
        return watched_sweep(words[1:])
    if words[:1] == ["profile"]:
        return profile(words[1:])
    if words[:1] == ["report"]:
        return guarded(lambda: _report(words[1:]))
    if words[:1] == ["status"]:
        return guarded(lambda: _status(words[1:]))
    if words[:1] == ["drift"]:
        return guarded(lambda: _drift(words[1:]))
    if words[:1] == ["compact"]:
        return guarded(lambda: _compact(words[1:]))
    if words[:1] == ["list"]:
        return guarded(lambda: _list(words[1:]))
    if words[:1] == ["power"]:
        return guarded(lambda: _power(words[1:]))
    if words[:1] in (["--help"], ["-h"], []):
        return guarded(lambda: _print(USAGE))
    open_streams()
    tell(USAGE.rstrip())
    return 2


def watched_sweep(words: Sequence[str]) -> int:
    """``python sweep.py``: ``sweep`` in a process of its own, which may break."""
    if any(word in ("--help", "-h") for word in words):
        return guarded(_help)
    try:
        return guarded(lambda: supervised(words, sweep), goes_on=True)
    finally:
        end_server()


def sweep(words: Sequence[str], watch: Watch | None = None) -> int:
    """Runs a sweep in this process and shows what came out."""
    return guarded(lambda: _sweep(words, watch or Watch()), goes_on=True)


def profile(words: Sequence[str]) -> int:
    """``tokred profile``: shows where the time of models goes."""
    if any(word in ("--help", "-h") for word in words):
        return guarded(lambda: _print(PROFILE_HELP))
    return guarded(lambda: _profile(words))


def guarded(command: Callable[[], int], *, goes_on: bool = False) -> int:
    """A user's mistake is one line, not a traceback. ``goes_on``: what was done is kept, and the same command does the rest."""
    open_streams()
    rest = "; the finished cells are kept: the same command goes on from here" if goes_on else ""
    try:
        code = command()
        sys.stdout.flush()  # else it fails at the end of the process, where nobody can say so
        return code
    except ValueError as error:
        tell(f"error: {plain(str(error))}")
        return 2
    except BrokenPipeError:
        drop_output()
        if goes_on:
            tell(f"stopped: nobody reads the output any more{rest}")
        return CLOSED_PIPE
    except OSError as error:  # a full disk, a folder that cannot be written
        drop_output()
        tell(plain(f"error: {error.strerror or error}: {error.filename or 'no file named'}"))
        return 2
    except KeyboardInterrupt:
        tell(f"\nstopped{rest}")
        return 130


def _print(text: str) -> int:
    print(text, end="")
    return 0


def _sweep(words: Sequence[str], watch: Watch) -> int:
    from tokred.data import create_data
    from tokred.record import Store, key_of
    from tokred.sweeps.conditions import conditions_of
    from tokred.sweeps.config import read_config
    from tokred.sweeps.drift import other_conditions
    from tokred.sweeps.logs import check_installed
    from tokred.sweeps.plan import make_plan
    from tokred.sweeps.run import device_of, run_plan

    config = read_config(words)
    check_installed(config.loggers)
    for path in config.plugins:
        load_file(path)
    console = printer()
    if config.executor == "local":  # else the device is another machine's
        device_of(config)
    data = create_data(**config.data)
    data.open_files = OpenFiles(watch.orders.open_files, watch.orders.refused)
    plan = make_plan(config, data)
    keys = [cell.key for group in plan for cell in group.cells]
    out = Path(config.out) if config.out else Path("runs") / f"{config.data['name']}-{key_of(keys)[:8]}"
    store = Store(out).create()
    if not watch.orders.again:
        where = device_of(config) if config.executor == "local" else config.executor
        _say(console, f"{len(keys)} cells, {len(data)} samples each, on {where}; records in {out}")
        _say_what_is_broken(store, keys, console)
    tally = run_plan(plan, config, data, store, console, watch=watch, words=words)
    watch.phase("the tables and figures")
    if tally.kept:
        _say(console, f"{tally.kept} of {len(keys)} cells were there already and were not run again")
    if tally.kept and config.executor == "local":
        for what, n in other_conditions(store.planned(), conditions_of(config)).items():
            _say(console, f"{n} of the cells were made with {what}; accuracies are not run again for that")
    _show(store, console)
    return _told(tally, console, retries=config.retry is not None)


def _told(tally: "Tally", console: Console, *, retries: bool) -> int:
    """The exit code, said where it is not 0."""
    if tally.failed and not retries:
        _say(console, f"{tally.failed} cells failed; they are tried again with retry=failed")
    if tally.missing:
        _say(console, f"{tally.missing} cells have no record: another sweep tries them again, or set them aside")
    if tally.failed or tally.missing:
        return 4 if tally.done == 0 else 3
    return 0


def _say_what_is_broken(store: "Store", keys: Sequence[str], console: Console) -> None:
    """Plugins that did not load, and what is set aside of an earlier run."""
    for registry in (METHODS, BACKBONES):
        for label, error in registry.broken.items():
            _say(console, f"plugin {label} did not load: {error}")
    for damaged in store.heal(keys):
        _say(console, f"damaged: {damaged}: set aside in {store.folder / 'damaged'}, and its cell is run again")


def _status(words: Sequence[str]) -> int:
    from tokred.record import Store
    from tokred.sweeps.status import lines, read_status

    if len(words) != 1:
        raise ValueError(
            f"tokred status takes a run folder, as tokred status runs/NAME; got {' '.join(words) or 'none'}"
        )
    store = Store(words[0])
    for line in lines(read_status(store), store):
        _say(printer(), line)
    return 0


def _drift(words: Sequence[str]) -> int:
    from tokred.data import create_data
    from tokred.record import Store
    from tokred.sweeps.conditions import conditions_of
    from tokred.sweeps.config import read_config
    from tokred.sweeps.drift import drift, lines, words_again
    from tokred.sweeps.plan import make_plan

    if not words or "=" in words[0]:
        raise ValueError(
            "tokred drift takes a run folder, and words that are to be other, as tokred drift runs/NAME r=8"
        )
    store = Store(words[0])
    config = read_config(words_again(store, words[1:]))
    for path in config.plugins:
        load_file(path)
    cells = [cell for group in make_plan(config, create_data(**config.data)) for cell in group.cells]
    for line in lines(drift(cells, store), conditions_of(config), store):
        _say(printer(), line)
    return 0


def _profile(words: Sequence[str]) -> int:
    from tokred.analysis.rows import write_csv
    from tokred.sweeps.config import read_config
    from tokred.sweeps.profile import profiles
    from tokred.sweeps.profile_table import lines, print_group

    config = read_config(words)
    for path in config.plugins:
        load_file(path)
    if config.out:
        Path(config.out).mkdir(parents=True, exist_ok=True)  # else the error would come after minutes of work
    console, groups = printer(), []
    named = any(word.lstrip("+").startswith(("data=", "data.", "experiment=")) for word in words)
    with console.status("") as status:
        for group in profiles(config, data_is_named=named, on_model=status.update):
            print_group(group, console)
            groups.append(group)
    if config.out:
        written = write_csv([line for group in groups for line in lines(group)], Path(config.out) / "profile.csv")
        _say(console, f"written: {written}")
    statuses = [model.status for group in groups for model in group.models]
    return 0 if "failed" not in statuses else 3 if "done" in statuses else 4


def _show(store, console: Console) -> None:
    from tokred.analysis.figures import FOLDER
    from tokred.analysis.rows import rows, write_csv
    from tokred.analysis.speeds import speeds
    from tokred.analysis.table import print_left_out, print_metrics, print_table

    found, every, timed = rows(store), rows(store, every_metric=True), speeds(store)
    print_metrics(every, console)
    print_table(found, console)
    print_left_out(timed, console)
    _name_broken(store, console)
    written = [write_csv(found, store.folder / "results.csv")]
    if len(every) > len(found):
        written.append(write_csv(every, store.folder / "metrics.csv"))
    if timed:
        written.append(write_csv(timed, store.folder / "timings.csv"))
    has_results = any(row.status == "done" for row in found)
    num_figures = _draw(store, has_results=has_results)
    _say(console, "written: " + ", ".join(str(path) for path in written))
    if num_figures:
        _say(console, f"figures: {num_figures} in {store.folder / FOLDER}, each as svg, png and the csv that was drawn")
    if has_results:
        _say(console, f"report: {store.folder / 'report.html'}")


def _draw(store: "Store", *, has_results: bool) -> int:
    """How many figures there are. They are drawn, with the report of results, where those that are there are not of the same."""
    from tokred.analysis.figures import draw_all
    from tokred.analysis.report import write_report
    from tokred.sweeps.claims import Claims
    from tokred.sweeps.unchanged import drawn_from, note_drawn, num_drawn

    num: int | None = None
    with Claims(store.folder) as claims:  # another sweep in the folder draws its own, before or after
        for _ in claims.each(["drawn"], lambda _: True):
            if (num := num_drawn(store, source := drawn_from(store))) is None:
                drawn = draw_all(store)
                if has_results:
                    write_report(store, drawn)
                num = len(drawn)
                note_drawn(store, source, num)
    assert num is not None
    return num


def _report(words: Sequence[str]) -> int:
    from tokred.analysis.report import write_comparison, write_report
    from tokred.record import Store

    out = [word.partition("=")[2] for word in words if word.startswith("out=")]
    folders = [word for word in words if not word.startswith("out=")]
    if not 1 <= len(folders) <= 2 or len(out) > 1 or (out and (len(folders) == 1 or not out[0])):
        raise ValueError(
            "tokred report takes one run folder, or two and out=FILE for what changed between them; got "
            f"{' '.join(words) or 'nothing'}"
        )
    stores = [Store(folder) for folder in folders]
    path = write_report(stores[0]) if len(stores) == 1 else write_comparison(stores[0], stores[1], *out)
    _say(printer(), f"report: {path}")
    return 0


def _compact(words: Sequence[str]) -> int:
    from tokred.analysis.compact import NAME, compact, is_current
    from tokred.record import Store

    if not words:
        raise ValueError("tokred compact takes run folders, as tokred compact runs/NAME; got none")
    for folder in words:
        (store := Store(folder)).plan()  # there is one, in a run folder
        if is_current(store):
            _say(printer(), f"unchanged: {store.folder / NAME}")
        else:
            _say(printer(), f"written: {compact(store)}")
    return 0


def _name_broken(store, console: Console, most: int = 10) -> None:
    """The files that could not be read, each once."""
    broken = dict.fromkeys(tuple(problem) for record in store.planned() for problem in record.result.get("broken", []))
    for path, reason in list(broken)[:most]:
        _say(console, f"not read: {path}: {reason}")
    if len(broken) > most:
        _say(console, f"not read: {len(broken) - most} more, named in {store.cells}")


def _say(console: Console, text: str) -> None:
    """A line as it is: no markup, and paths are not broken."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _help() -> int:
    from tokred.data import DATA
    from tokred.schedule import SHAPES
    from tokred.sweeps.config import data_sets, experiments

    data = "".join(f"  {name:<15} {_about(cls)}\n" for name, cls in DATA.items())
    sets = _wrapped([name for name in data_sets() if name not in DATA])
    names = _wrapped(experiments())
    print(HELP.format(shapes=", ".join(SHAPES), data=data, sets=sets, experiments=names, plugins=_plugins("*")))
    return 0


def _wrapped(names: Sequence[str]) -> str:
    return textwrap.fill(", ".join(names), 116, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def _list(words: Sequence[str]) -> int:
    if words == ["--markdown"]:
        from tokred.catalogue import markdown

        print(markdown(METHODS), end="")
        return 0
    if len(words) > 1:
        raise ValueError(f"tokred list takes one pattern at most, as tokred list 'timm/*small*'; got {' '.join(words)}")
    found = _plugins(words[0] if words else "*", every=bool(words))
    if not found:
        raise ValueError(f"no method or backbone matches {words[0]!r}; tokred list shows them all")
    print(found)
    return 0


def _power(words: Sequence[str]) -> int:
    from tokred.analysis.statistics import planned_detectable

    given = dict(word.partition("=")[::2] for word in words)
    wanted = "tokred power takes n=10000 discordant=0.06, and comparisons=225 if there are several"
    if not {"n", "discordant"} <= given.keys() <= {"n", "discordant", "comparisons"}:
        raise ValueError(f"{wanted}; got {' '.join(words) or 'nothing'}")
    try:
        num, comparisons, discordant = int(given["n"]), int(given.get("comparisons", 1)), float(given["discordant"])
    except ValueError:
        raise ValueError(f"{wanted}, all numbers, n and comparisons whole; got {' '.join(words)}") from None
    least = planned_detectable(num, discordant, num_comparisons=comparisons)
    family = f", each as one of {comparisons:,} comparisons" if comparisons > 1 else ""
    print(
        f"{num:,} samples, {100 * discordant:g} % of them discordant{family}: a true difference of {100 * least:.2f} points is "
        "found in 4 of 5 sweeps"
    )
    return 0


def _plugins(pattern: str, *, every: bool = False) -> str:
    """Methods and backbones, a line each; families of very many names as one line, unless ``every``."""
    methods = [_method_line(cls) for cls in METHODS if fnmatch.fnmatch(cls.name, pattern)]
    backbones = []
    for family in BACKBONES:
        names = [name for name in family.names() if fnmatch.fnmatch(name, pattern)]
        about = _about(family)
        if len(names) > 10 and not every:
            start = names[0].split("/")[0]
            backbones.append(f"  {start + '/NAME':<22} {about} ({len(names)} names: tokred list '{start}/*')")
        else:
            backbones.extend(f"  {name:<22} {about}" for name in names)
    broken = [
        f"  {label}: {error}" for registry in (METHODS, BACKBONES) for label, error in _loaded(registry).broken.items()
    ]
    parts = {"Methods (and their options):": methods, "Backbones:": backbones, "Plugins that did not load:": broken}
    return "\n".join("\n".join([title, *lines]) for title, lines in parts.items() if lines)


def _method_line(cls: "type[Method]") -> str:
    """A line; its options on one of their own where there are many."""
    from tokred.reduction import method_options

    line = f"  {cls.name:<14} {_about(sys.modules[cls.__module__])}"
    options = f"[{', '.join(method_options(cls))}]".replace("[]", "")
    return f"{line} {options}".rstrip() if len(line) + len(options) < 150 else f"{line}\n{'':<17}{options}"


def _loaded(registry: Registry) -> Registry:
    registry.names()
    return registry


def _about(thing: object) -> str:
    """The first line of its docstring, without the preprint's number and marks of code."""
    line = (thing.__doc__ or "").strip().split("\n")[0].replace("``", "")
    return re.sub(r",? arXiv [\d.]+", "", line)

"""Moving shapes: a video data set drawn from a seed, with true labels, captions, questions and object masks.

A clip shows a few objects over a textured, drifting background with small specks. One object travels, the others stay
or tremble in place. The class is the *fill pattern* of the traveller and the *direction* it travels in: 6 x 4 = 24
classes that need appearance and motion together, in a picture of which most is background.

All arithmetic is on integers, and the random stream is NumPy's frozen ``RandomState``: the clip of a split and an index
is the same, byte for byte, on every machine.

Dimension key: T frames, H height, W width.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import RandomState

NUM_FRAMES, IMAGE_SIZE = 8, 64
SHAPES = ("disc", "square", "triangle", "diamond", "cross")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 210, 40),
    "magenta": (210, 60, 200),
    "cyan": (50, 205, 215),
}
FILLS = ("plain", "rows", "columns", "diagonals", "checks", "dots")
DIRECTIONS = ("left", "right", "up", "down")
VELOCITY = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # (y, x)
CLASSES = tuple(f"{fill} {direction}" for fill in FILLS for direction in DIRECTIONS)
COUNTS = ("1", "2", "3", "4", "5")  # of objects; 1 and 2 only below difficulty 1
ANSWERS = (*DIRECTIONS, *SHAPES, *COLOURS, *FILLS, *COUNTS)  # all that ``questions`` can have, question by question


@dataclass(frozen=True)
class Thing:
    """One object: how it looks and where its centre is in each frame (pixels, y and x)."""

    shape: str
    colour: str
    fill: str
    motion: str  # a direction, "still" or "trembling"
    size: int
    path: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Scene:
    """What a clip shows. ``things[0]`` is the one that travels; the others never hide it."""

    things: tuple[Thing, ...]
    label: int


@dataclass(frozen=True)
class Clip:
    """``frames_THWC`` uint8; ``owner_THW`` uint8: 0 background, i + 1 where ``scene.things[i]`` is seen."""

    frames_THWC: np.ndarray
    owner_THW: np.ndarray
    scene: Scene


def make_clip(split: str, index: int, *, difficulty: float = 1.0) -> Clip:
    """The clip of this split and index.

    ``difficulty`` in 0..1 scales the contrast of the background, the number of resting objects and of specks; the data
    set proper is difficulty 1, training starts lower.
    """
    random = _random(split, index)
    scene = _draw_scene(random, difficulty)  # first, so that make_scene need not draw the rest
    frames_THWC = _background(random, difficulty)
    owner_THW = np.zeros((NUM_FRAMES, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    _paint_specks(frames_THWC, random, difficulty)
    for number, thing in reversed(list(enumerate(scene.things, start=1))):
        _paint(frames_THWC, owner_THW, thing, number)
    return Clip(frames_THWC, owner_THW, scene)


def make_scene(split: str, index: int, *, difficulty: float = 1.0) -> Scene:
    """What the clip shows, without a pixel drawn: ``make_clip(...).scene``."""
    return _draw_scene(_random(split, index), difficulty)


def caption(scene: Scene) -> str:
    """One sentence on what happens, then what else is there."""
    first, *rest = scene.things
    text = f"a {first.colour} {first.shape} filled with {first.fill} moves {first.motion}"
    if first.fill == "plain":
        text = f"a plain {first.colour} {first.shape} moves {first.motion}"
    if not rest:
        return text
    return text + " past " + " and ".join(f"a {thing.colour} {thing.shape}" for thing in rest)


def questions(scene: Scene) -> list[tuple[str, str]]:
    """Pairs of question and answer (one word each) about the traveller and the count of objects."""
    first = scene.things[0]
    return [
        ("which way does the moving object go?", first.motion),
        ("what shape is the moving object?", first.shape),
        ("what colour is the moving object?", first.colour),
        ("what pattern does the moving object have?", first.fill),
        ("how many objects are there?", str(len(scene.things))),
    ]


def _random(split: str, index: int) -> RandomState:
    digest = hashlib.sha256(f"moving_shapes/{split}/{index}".encode()).digest()
    return RandomState(np.frombuffer(digest[:16], "<u4"))


def _draw_scene(random: RandomState, difficulty: float) -> Scene:
    fill, direction = random.randint(len(FILLS)), random.randint(len(DIRECTIONS))
    things = [_draw_thing(random, FILLS[fill], DIRECTIONS[direction], [])]
    num_resting = random.randint(2, 5)
    for number in range(num_resting):
        other = FILLS[(fill + 1 + random.randint(len(FILLS) - 1)) % len(FILLS)]
        motion = ("still", "trembling")[random.randint(2)]
        thing = _draw_thing(random, other, motion, things)
        if number < difficulty * num_resting:
            things.append(thing)
    return Scene(tuple(things), fill * len(DIRECTIONS) + direction)


def _draw_thing(random: RandomState, fill: str, motion: str, others: list[Thing]) -> Thing:
    shape = SHAPES[random.randint(len(SHAPES))]
    colour = list(COLOURS)[random.randint(len(COLOURS))]
    size = random.randint(13, 20)
    if motion in VELOCITY:
        path = _travel(random, size, motion)
    else:
        path = _rest(random, size, others, tremble=motion == "trembling")
    return Thing(shape, colour, fill, motion, size, path)


def _travel(random: RandomState, size: int, direction: str) -> tuple[tuple[int, int], ...]:
    """A straight way that stays in the picture, 1 to 1.5 pixels a frame: less than half of any pattern's period, so that the
    direction can be told from two frames."""
    eighths = random.randint(8, 13)
    shift = [(eighths * t) // 8 for t in range(NUM_FRAMES)]
    low, high = size // 2 + 1, IMAGE_SIZE - size // 2 - 1
    along = random.randint(low, high - shift[-1])
    across = random.randint(low, high)
    if direction in ("left", "up"):
        shift = shift[::-1]
    if direction in ("left", "right"):
        return tuple((across, along + s) for s in shift)
    return tuple((along + s, across) for s in shift)


def _rest(random: RandomState, size: int, others: list[Thing], tremble: bool) -> tuple[tuple[int, int], ...]:
    """A place apart from the others where one is found in 8 tries; trembling is one pixel to either side."""
    low, high = size // 2 + 1, IMAGE_SIZE - size // 2 - 1
    best, clearest = (low, low), -(10**9)
    for y, x in random.randint(low, high, (8, 2)):
        gap = min(max(abs(y - b), abs(x - a)) - size for thing in others for b, a in thing.path)
        if gap > clearest:
            best, clearest = (int(y), int(x)), gap
    jitter = random.randint(-1, 2, (NUM_FRAMES, 2)) * tremble
    return tuple((best[0] + int(dy), best[1] + int(dx)) for dy, dx in jitter)


def _background(random: RandomState, difficulty: float) -> np.ndarray:
    """Two octaves of value noise around one colour, drifting up to a pixel a frame."""
    side = IMAGE_SIZE + NUM_FRAMES
    mean = random.randint(70, 170, 3)
    texture = np.zeros((side, side, 3), np.int64)
    for cell, amplitude in ((24, 45), (6, 40)):
        grid = random.randint(-amplitude, amplitude + 1, (side // cell + 2, side // cell + 2, 3))
        texture += _upsample(grid, cell, side)
    texture = mean + texture * round(256 * difficulty) // 256
    texture = texture.clip(0, 255).astype(np.uint8)
    drift = random.randint(-8, 9, 2)
    frames_THWC = np.empty((NUM_FRAMES, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for t in range(NUM_FRAMES):
        y, x = (int(d) * t // 8 + (NUM_FRAMES if d < 0 else 0) for d in drift)
        frames_THWC[t] = texture[y : y + IMAGE_SIZE, x : x + IMAGE_SIZE]
    return frames_THWC


def _upsample(grid: np.ndarray, cell: int, side: int) -> np.ndarray:
    """Bilinear, in integers: weights are multiples of 1 / cell."""
    at = np.arange(side)
    low, part = at // cell, at % cell
    rows = grid[low] * (cell - part)[:, None, None] + grid[low + 1] * part[:, None, None]
    both = rows[:, low] * (cell - part)[None, :, None] + rows[:, low + 1] * part[None, :, None]
    return both // (cell * cell)


def _paint_specks(frames_THWC: np.ndarray, random: RandomState, difficulty: float) -> None:
    num_specks = random.randint(4, 11)
    start, velocity = random.randint(0, IMAGE_SIZE * 8, (num_specks, 2)), random.randint(-20, 21, (num_specks, 2))
    colours, sides = random.randint(0, 256, (num_specks, 3)), random.randint(2, 4, num_specks)
    for number in range(round(difficulty * num_specks)):
        for t in range(NUM_FRAMES):
            y, x = (start[number] + velocity[number] * t) // 8 % IMAGE_SIZE
            frames_THWC[t, y : y + sides[number], x : x + sides[number]] = colours[number]


def _paint(frames_THWC: np.ndarray, owner_THW: np.ndarray, thing: Thing, number: int) -> None:
    inside_HW = _silhouette(thing.shape, thing.size)
    colour = np.array(COLOURS[thing.colour], np.uint8)
    picture_HWC = np.where(_ink(thing.fill, thing.size)[..., None], colour, colour // 5)
    for t, (y, x) in enumerate(thing.path):
        top, left = y - thing.size // 2, x - thing.size // 2
        window = (t, slice(max(top, 0), top + thing.size), slice(max(left, 0), left + thing.size))
        height, width = owner_THW[window].shape
        cut = (slice(max(-top, 0), max(-top, 0) + height), slice(max(-left, 0), max(-left, 0) + width))
        frames_THWC[window][inside_HW[cut]] = picture_HWC[cut][inside_HW[cut]]
        owner_THW[window][inside_HW[cut]] = number


def _silhouette(shape: str, size: int) -> np.ndarray:
    """Which pixels of a size x size window belong to the shape; doubled coordinates keep the centre an integer."""
    y, x = np.mgrid[:size, :size]
    dy, dx = 2 * y - (size - 1), 2 * x - (size - 1)
    if shape == "disc":
        return dy * dy + dx * dx <= size * size
    if shape == "triangle":
        return 2 * abs(dx) <= dy + size
    if shape == "diamond":
        return abs(dy) + abs(dx) <= size + 1
    if shape == "cross":
        return np.minimum(abs(dy), abs(dx)) * 5 <= 2 * size
    return np.ones((size, size), bool)


def _ink(fill: str, size: int) -> np.ndarray:
    """Where the window shows the full colour; elsewhere it is a fifth as bright."""
    y, x = np.mgrid[:size, :size]
    if fill == "rows":
        return y // 3 % 2 == 0
    if fill == "columns":
        return x // 3 % 2 == 0
    if fill == "diagonals":
        return (x + y) // 3 % 2 == 0
    if fill == "checks":
        return (y // 3 + x // 3) % 2 == 0
    if fill == "dots":
        return (y % 5 < 3) & (x % 5 < 3)
    return np.ones((size, size), bool)


def clip_tensor(clip: Clip) -> torch.Tensor:
    """(T, 3, H, W) float32, pixels in -1..1: what the embedded models take."""
    return torch.from_numpy(clip.frames_THWC).permute(0, 3, 1, 2).float() / 127.5 - 1

"""Who is in a rendered clip: one public-domain portrait, varied into many people.

Everything is placed in the pixels of `skimage.data.astronaut()`
(a NASA photograph), called portrait coordinates below. An identity is a recoloured
canvas in those coordinates plus `mesh`, which says for each pixel of the frame which
point of the portrait it shows; the shape of the face lives in that mesh alone.
"""

import dataclasses
import functools

import cv2
import numpy as np
import skimage.data
from jaxtyping import Float, UInt8

SIZE = 256  # pixels of a frame, square
LEFT, TOP, EXTENT = 80, 0, 300  # part of the portrait that the canvas holds
ZOOM = 2  # canvas pixels a portrait pixel

EYES = ((204.2, 101.6), (246.2, 103.2))
MOUTH = (223.4, 144.0)

_HEAD = """154,75 158,55 170,45 190,35 215,17 240,15 275,27 295,50 302,85 290,118
275,130 268,136 262,155 256,172 280,185 297,210 305,235 330,245 345,268 355,300 80,300
80,225 100,210 115,195 118,185 140,158 180,148 180,136 168,122 160,105"""
_SKIN = """172,119 180,122 179,108 181,92 186,80 196,84 210,82 235,82 255,86 268,90
271,104 270,122 280,128 275,134 268,137 262,155 255,166 256,180 240,190 222,188 200,183
187,176 186,160 182,140 174,132"""
_LIPS = """202,139 209,138.5 217,139 223,140.3 229,139.5 237,140 245,140.7 242,146
237,151 229,155 222,155.5 214,154 207,149 203,143"""
_TEETH = """204,139.8 213,141.3 223,143 233,142.2 243,141.2 239,145.5 232,148.6 222,150
213,148 207,144.5"""
_BEARD = """183,140 190,148 197,137 203,134 215,132 223,134 232,132 243,135 249,139
255,150 264,142 263,155 256,168 240,179 222,182 202,177 190,165"""

# Multipliers of the red, green and blue of skin; the portrait's own is the first.
_SKINS = (
    (1.0, 1.0, 1.0),
    (0.93, 0.82, 0.72),
    (0.80, 0.66, 0.54),
    (0.68, 0.53, 0.43),
    (0.55, 0.42, 0.34),
    (1.04, 1.03, 1.06),
)
# Colour that a hair's lightness is multiplied with.
_HAIR = (
    (0.30, 0.27, 0.27),
    (0.62, 0.45, 0.33),
    (1.25, 1.05, 0.68),
    (1.15, 0.55, 0.30),
    (1.12, 1.12, 1.15),
    (0.45, 0.36, 0.30),
)


@dataclasses.dataclass(frozen=True)
class Identity:
    """A person in front of a background.

    Attributes:
        canvas: colour and opacity in portrait coordinates, `ZOOM` pixels each.
        glasses: colour and opacity over `canvas`, drawn after the face has moved.
        plate: the background.
        mesh: portrait coordinates (x, y) seen by each pixel of the frame at rest.
        depth: 1 at the nose, 0 off the face: what turning the head displaces.
        head: 1 on the head, falling to a rest on the torso.
        light: factor of the light on the person at each pixel.
    """

    canvas: UInt8[np.ndarray, "600 600 4"]
    glasses: Float[np.ndarray, "600 600 4"] | None
    plate: Float[np.ndarray, "256 256 3"]
    mesh: Float[np.ndarray, "256 256 2"]
    depth: Float[np.ndarray, "256 256"]
    head: Float[np.ndarray, "256 256"]
    light: Float[np.ndarray, "256 256 3"]


def points(text: str) -> Float[np.ndarray, "N C"]:
    """Reads points: their coordinates by commas, themselves by spaces."""
    return np.array([point.split(",") for point in text.split()], np.float64)


def _area(outline: str, feather: float) -> Float[np.ndarray, "600 600"]:
    """Fills an outline of portrait points with 1 and softens its edge (pixels)."""
    mask = np.zeros((EXTENT * ZOOM, EXTENT * ZOOM), np.float32)
    fixed = np.round((points(outline) - [LEFT, TOP]) * ZOOM * 16).astype(np.int32)
    cv2.fillPoly(mask, [fixed], 1.0, cv2.LINE_AA, shift=4)
    return cv2.GaussianBlur(mask, (0, 0), feather * ZOOM)


@functools.cache
def _portrait() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns the enlarged portrait in 0..1 and its soft areas by name."""
    crop = skimage.data.astronaut()[TOP : TOP + EXTENT, LEFT : LEFT + EXTENT]
    rough = cv2.resize(_area(_HEAD, 0.1), crop.shape[:2], interpolation=cv2.INTER_AREA)
    inside = (rough > 0.5).astype(np.uint8)
    labels = np.where(inside, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[cv2.erode(inside, np.ones((17, 17))) > 0] = cv2.GC_FGD
    labels[cv2.dilate(inside, np.ones((21, 21))) == 0] = cv2.GC_BGD
    cv2.setRNGSeed(0)
    cv2.grabCut(
        np.ascontiguousarray(crop),
        labels,
        None,
        np.zeros((1, 65)),
        np.zeros((1, 65)),
        4,
        cv2.GC_INIT_WITH_MASK,
    )
    person = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
    size = (EXTENT * ZOOM, EXTENT * ZOOM)
    person = cv2.resize(person, size, interpolation=cv2.INTER_LINEAR)
    # A matte pulled in by a pixel keeps the old background out of the new one.
    person = cv2.GaussianBlur(cv2.erode(person, np.ones((3, 3))), (0, 0), 1.2)
    image = cv2.resize(crop, size, interpolation=cv2.INTER_LANCZOS4)
    image = image.astype(np.float32) / 255
    image = image + 0.6 * (image - cv2.GaussianBlur(image, (0, 0), 2.0))

    y = np.arange(EXTENT * ZOOM, dtype=np.float32)[:, None] / ZOOM + TOP
    eyes = np.max([_ellipse(eye, (9.5, 3.8), 0.5) for eye in EYES], axis=0)
    teeth = _area(_TEETH, 0.4)
    skin = _area(_SKIN, 1.2) * (1 - eyes) * (1 - teeth)
    hair = person * np.clip((142 - y) / 4, 0, 1) * (1 - _area(_SKIN, 1.2))
    saturation = image.max(-1) - image.min(-1)
    suit = person * np.clip((y - 195) / 20, 0, 1) * np.clip(saturation * 4 - 1, 0, 1)
    areas = {
        "person": person,
        "skin": skin,
        "whites": np.maximum(eyes, teeth),
        "hair": hair,
        "suit": suit,
        "lips": _area(_LIPS, 0.7) * (1 - teeth),
        "beard": _area(_BEARD, 2.5) * (1 - _area(_LIPS, 1.0)),
    }
    return np.clip(image, 0, 1), areas


@functools.cache
def grid() -> tuple[np.ndarray, np.ndarray]:
    """Returns x and y of each canvas pixel in portrait coordinates."""
    along = np.arange(EXTENT * ZOOM, dtype=np.float32) / ZOOM
    return np.meshgrid(along + LEFT, along + TOP)


def _ellipse(
    centre: tuple[float, float], radii: tuple[float, float], feather: float
) -> np.ndarray:
    """Returns 1 inside an ellipse on the canvas, with an edge `feather` wide."""
    x, y = grid()
    distance = np.hypot((x - centre[0]) / radii[0], (y - centre[1]) / radii[1])
    return np.clip((1 - distance) * min(radii) / feather + 0.5, 0, 1)


def _paint(rng: np.random.Generator, bearded: bool) -> UInt8[np.ndarray, "600 600 4"]:
    """Recolours skin, lips, hair and suit, and grows a beard."""
    image, areas = _portrait()
    image = image.copy()
    lightness = image @ np.array([0.3, 0.59, 0.11], np.float32)

    def blend(area: str, colour: np.ndarray, share: float = 1.0) -> None:
        weight = share * areas[area][..., None]
        image[:] = image * (1 - weight) + colour * weight

    tone = np.array(_SKINS[rng.integers(len(_SKINS))]) * rng.uniform(0.92, 1.06, 3)
    hair = np.array(_HAIR[rng.integers(len(_HAIR))]) * rng.uniform(0.85, 1.15)
    blend("skin", image * tone)
    blend("whites", image * np.sqrt(np.minimum(tone, 1.0)))
    pale = rng.uniform(0.6, 0.95)
    lip = np.array([rng.uniform(0.9, 1.0), pale, pale * rng.uniform(0.95, 1.05)])
    blend("lips", image * lip)
    blend("hair", (lightness[..., None] ** rng.uniform(0.9, 1.3)) * hair * 1.15)
    hsv = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + rng.uniform(0, 360)) % 360
    hsv[..., 1] *= rng.uniform(0.4, 1.0)
    blend("suit", cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))
    if bearded:
        grain = rng.standard_normal(lightness.shape).astype(np.float32)
        grain = cv2.GaussianBlur(grain, (0, 0), 0.8, sigmaY=2.0)
        grain = np.clip(0.75 + 0.2 * grain / grain.std(), 0.2, 1.0)[..., None]
        colour = 0.45 * hair * lightness[..., None] * grain
        blend("beard", colour, rng.uniform(0.5, 0.85))
    alpha = areas["person"][..., None]
    # Premultiplied: interpolation at the outline then mixes in no background.
    rgba = np.concatenate([np.clip(image, 0, 1) * alpha, alpha], axis=-1)
    return np.round(255 * rgba).astype(np.uint8)


def _glasses(rng: np.random.Generator) -> Float[np.ndarray, "600 600 4"]:
    """Draws a pair of glasses as premultiplied colour and opacity."""
    colour = rng.uniform(0.02, 0.35, 3)
    radii = (rng.uniform(13, 15.5), rng.uniform(9.5, 13))
    rim = rng.uniform(0.7, 1.6)
    x, y = grid()
    alpha = np.zeros(x.shape, np.float32)
    for eye in EYES:
        centre = (eye[0] + 0.05 * (eye[0] - 224.0), eye[1] + 1.5)
        inner = _ellipse(centre, radii, 0.5)
        alpha = np.maximum(alpha, _ellipse(centre, np.add(radii, rim), 0.5) - inner)
    bridge = (np.abs(y - 99.5) < rim * 0.6) & (np.abs(x - 225.2) < 21.5 - radii[0])
    arm = (np.abs(y - 100.5) < rim * 0.7) & (np.abs(x - 225.2) < 46)
    arm &= np.abs(x - 225.2) > 22 + radii[0]
    alpha = np.maximum(alpha, cv2.GaussianBlur((bridge | arm).astype("f4"), (0, 0), 1))
    return np.concatenate(
        [alpha[..., None] * colour, alpha[..., None]], axis=-1, dtype=np.float32
    )


def _plate(rng: np.random.Generator) -> Float[np.ndarray, "256 256 3"]:
    """Draws a background: two colours, soft blobs and a hint of structure, 0..255."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE
    angle = rng.uniform(0, 2 * np.pi)
    ramp = 0.5 + 0.5 * (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5))
    first, second = rng.uniform(40, 200, (2, 1)) + rng.uniform(-35, 35, (2, 3))
    plate = first + (second - first) * ramp[..., None]
    for _ in range(rng.integers(3, 9)):
        centre, radius = rng.uniform(0, 1, 2), rng.uniform(0.08, 0.35)
        blob = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / radius**2)
        plate += blob[..., None] * rng.uniform(-45, 45, 3)
    if rng.uniform() < 0.4:  # a window or a shelf behind
        edge, width = rng.uniform(0, 0.8), rng.uniform(0.1, 0.3)
        bar = ((x > edge) & (x < edge + width)).astype(np.float32)
        bar = cv2.GaussianBlur(bar, (0, 0), rng.uniform(2, 8))
        plate += bar[..., None] * rng.uniform(-60, 60, 3)
    return np.clip(plate, 0, 255).astype(np.float32)


def _shape(rng: np.random.Generator) -> Float[np.ndarray, "256 256 2"]:
    """Draws framing and the shape of the face: the mesh of an identity."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    x, y = x + 0.5 - SIZE / 2, y + 0.5 - SIZE / 2
    if rng.uniform() < 0.5:
        x = -x
    scale, aspect = rng.uniform(1.35, 1.8), rng.uniform(0.92, 1.1)
    tilt = np.deg2rad(rng.uniform(-5, 5))
    cos, sin = np.cos(tilt), np.sin(tilt)
    px = (cos * x + sin * y) / (scale * aspect) + 225 + rng.uniform(-6, 6)
    py = (cos * y - sin * x) * aspect / scale + 122 + rng.uniform(-6, 6)

    dx, dy = np.zeros_like(px), np.zeros_like(py)

    def swell(cx: float, cy: float, rx: float, ry: float, gx: float, gy: float) -> None:
        """Magnifies around a point by 1 + gx and 1 + gy."""
        near = np.exp(-0.5 * (((px - cx) / rx) ** 2 + ((py - cy) / ry) ** 2))
        dx[:] -= gx * (px - cx) * near
        dy[:] -= gy * (py - cy) * near

    swell(224, 165, 40, 18, rng.uniform(-0.16, 0.2), 0)  # jaw
    swell(224, 178, 40, 16, 0, rng.uniform(-0.15, 0.25))  # chin
    swell(224, 120, 22, 14, rng.uniform(-0.15, 0.3), rng.uniform(-0.15, 0.2))  # nose
    swell(224, 146, 26, 9, rng.uniform(-0.12, 0.15), rng.uniform(-0.05, 0.3))  # lips
    eye, apart = rng.uniform(-0.12, 0.22), rng.uniform(-0.1, 0.1)
    for centre in EYES:
        swell(*centre, 12, 8, eye, eye)
    swell(225, 102, 34, 14, apart, 0)
    swell(224, 88, 34, 7, 0, rng.uniform(-0.2, 0.25))  # brows
    swell(228, 45, 70, 30, rng.uniform(-0.1, 0.12), rng.uniform(-0.2, 0.25))  # hair
    swell(225, 110, 46, 60, rng.uniform(-0.1, 0.1), 0)  # breadth
    return np.stack([px + dx, py + dy], axis=-1).astype(np.float32)


@functools.lru_cache(maxsize=4)
def draw(seed: int, *, beard_allowed: bool) -> Identity:
    """Draws a person, half of whom have a beard where one is allowed."""
    rng = np.random.default_rng([seed, 3])
    bearded = beard_allowed and bool(rng.uniform() < 0.5)
    canvas = _paint(rng, bearded)
    glasses = _glasses(rng) if rng.uniform() < 0.3 else None
    plate, mesh = _plate(rng), _shape(rng)
    px, py = mesh[..., 0], mesh[..., 1]
    depth = np.exp(-0.5 * (((px - 224) / 26) ** 2 + ((py - 125) / 36) ** 2))
    head = 0.15 + 0.85 / (1 + np.exp((py - 188) / 7))
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE - 0.5
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.6)
    light = 1 + strength * (np.cos(angle) * x + np.sin(angle) * y)
    warmth = np.array([1.0, 1.0, 1.0]) + rng.uniform(-0.08, 0.08) * np.array([1, 0, -1])
    light = light[..., None] * warmth * rng.uniform(0.82, 1.12)
    return Identity(
        canvas=canvas,
        glasses=glasses,
        plate=plate,
        mesh=mesh,
        depth=depth.astype(np.float32),
        head=head.astype(np.float32),
        light=light.astype(np.float32),
    )

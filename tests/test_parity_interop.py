"""Networks of the older system against PyTorch modules written from their description.

The modules have its parameter names, so that a state dict of theirs is one of its own.
"""

import json
import os
import pathlib

import jax
import numpy as np
import pytest

from tests import older, test_interop
from tqa_jax import interop

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

ACTIVATIONS = {"sigmoid": torch.sigmoid, "none": None}
ACTIVATIONS["tanh"] = lambda x: 0.5 * (torch.tanh(x) + 1)
TABLES = pathlib.Path(os.environ.get("TQA_SHARED", "")) / "spec/state_dict_shapes.json"


@pytest.fixture(autouse=True, scope="module")
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def normed(widths, activation):
    """Linear, LayerNorm, activation and dropout, for each width after the first."""
    found = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        found += [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), activation()]
        found.append(nn.Dropout(0.3))
    return found


class Encoder(nn.Module):
    def __init__(self, name, widths, activation):
        super().__init__()
        self.add_module(name, nn.Sequential(*normed(widths, activation)))
        self.layers = lambda: getattr(self, name)
        self.residual_proj = nn.Identity()
        if widths[0] != widths[-1]:
            self.residual_proj = nn.Linear(widths[0], widths[-1])

    def forward(self, x):
        return self.layers()(x) + self.residual_proj(x)


class TimeBlock(nn.Module):
    def __init__(self, name, width, heads):
        super().__init__()
        attention = nn.MultiheadAttention(width, heads, 0.1, batch_first=True)
        self.add_module(name, attention)
        self.attention = lambda: getattr(self, name)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            *(nn.Linear(width, 4 * width), nn.ReLU(), nn.Dropout(0.1)),
            nn.Linear(4 * width, width),
        )

    def forward(self, x):
        x = self.norm1(x + self.attention()(x, x, x, need_weights=False)[0])
        return self.norm2(x + self.ffn(x))


class Head(nn.Module):
    def __init__(self, name, widths, activation, buffers):
        super().__init__()
        layers = [*normed(widths, nn.GELU), nn.Linear(widths[-1], 1)]
        self.add_module(name, nn.Sequential(*layers))
        self.layers = lambda: getattr(self, name)
        self.feature_scale = nn.Parameter(torch.ones(1))
        self.activation = ACTIVATIONS[activation]
        self.low, self.span = 1.0, 4.0
        if buffers:
            for part, value in {"min": 1.0, "max": 5.0, "range": 4.0}.items():
                self.register_buffer(f"_score_{part}", torch.tensor(value))

    def forward(self, x):
        raw = self.layers()(x * self.feature_scale)
        return self.low + self.span * self.activation(raw) if self.activation else raw


def transformer(width, heads, ffn, layers):
    layer = nn.TransformerEncoderLayer(width, heads, ffn, 0.1, batch_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


class DualPath(nn.Module):
    """What Advanced and Improved share."""

    def take(self, x, name):
        width = x.shape[-1]
        if width == self.widths[name]:
            return x
        key = f"{name}_proj_{width}_to_{self.widths[name]}"
        return getattr(self._adaptive_proj, key)(x)

    def adapt(self, shapes):
        """Makes the projections that a state dict has."""
        self._adaptive_proj = nn.Module()
        for key, shape in shapes.items():
            if key.startswith("_adaptive_proj.") and key.endswith(".weight"):
                self._adaptive_proj.add_module(
                    key.split(".")[1], nn.Linear(shape[1], shape[0])
                )

    def tokens(self, features):
        frames = min(x.shape[1] for x in features.values())
        found = []
        for name in older.MODALITIES:
            x = self.take(features[name][:, :frames], name)
            x = self.time()(getattr(self, f"{name}_encoder")(x))
            pooled = torch.cat([x.mean(1), x.max(1).values], -1)
            found.append(self.pool_proj(pooled))
        return found


class Advanced(DualPath):
    def __init__(self, shapes, *, heads, temporal_heads, activation="sigmoid"):
        super().__init__()
        width = shapes["pool_proj.bias"][0]
        self.widths = {
            name: shapes[f"{name}_encoder.net.0.weight"][1] for name in older.MODALITIES
        }
        for name, inputs in self.widths.items():
            encoder = Encoder("net", (inputs, width, width, width), nn.GELU)
            self.add_module(f"{name}_encoder", encoder)
        self.temporal_block = TimeBlock("attn", width, temporal_heads)
        self.time = lambda: self.temporal_block
        self.multimodal_fusion = transformer(
            width,
            heads,
            shapes["multimodal_fusion.layers.0.linear1.bias"][0],
            count(shapes, "multimodal_fusion.layers."),
        )
        self.pool_proj = nn.Linear(2 * width, width)
        self.multi_scale_fusion = nn.Sequential(
            *(nn.Linear(4 * width, 2 * width), nn.GELU(), nn.Dropout(0.2)),
            nn.Linear(2 * width, width),
        )
        hidden = [shapes[f"heads.lip_sync.net.{i}.bias"][0] for i in (0, 4)]
        self.heads = nn.ModuleDict(
            {
                task: Head("net", (width, *hidden), activation, False)
                for task in older.TASKS
            }
        )
        self.dynamic_weighting = nn.Module()
        self.dynamic_weighting.log_vars = nn.ParameterDict(
            {task: torch.zeros(1) for task in older.TASKS}
        )
        self.adapt(shapes)

    def forward(self, features):
        tokens = self.tokens(features)
        one = self.multi_scale_fusion(torch.cat(tokens, -1))
        other = self.multimodal_fusion(torch.stack(tokens, 1)).mean(1)
        return {task: head((one + other) / 2) for task, head in self.heads.items()}


class Fusion(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.fusion_network = nn.Sequential(
            *(nn.Linear(4 * width, 2 * width), nn.ReLU(), nn.Dropout(0.2)),
            nn.Linear(2 * width, width),
        )

    def forward(self, tokens):
        parts = [f(x) for f, x in zip(self.projections, tokens, strict=True)]
        return self.fusion_network(torch.cat(parts, -1))


class Improved(DualPath):
    def __init__(self, shapes, *, heads, temporal_heads, activation="sigmoid"):
        super().__init__()
        width = shapes["pool_proj.bias"][0]
        self.temperature = nn.Parameter(torch.ones(1))
        self.widths = {
            name: shapes[f"{name}_encoder.encoder.0.weight"][1]
            for name in older.MODALITIES
        }
        for name, inputs in self.widths.items():
            widths = (inputs, 4 * width, 2 * width, width)
            encoder = Encoder("encoder", widths, nn.ReLU)
            self.add_module(f"{name}_encoder", encoder)
        self.temporal_attention = TimeBlock("multihead_attn", width, temporal_heads)
        self.time = lambda: self.temporal_attention
        self.multimodal_fusion = transformer(
            width,
            heads,
            shapes["multimodal_fusion.layers.0.linear1.bias"][0],
            count(shapes, "multimodal_fusion.layers."),
        )
        self.multi_scale_fusion = Fusion(width)
        self.pool_proj = nn.Linear(2 * width, width)
        for task in older.TASKS:
            key = f"{task}_head.head"
            places = [i for i in (0, 4, 8) if f"{key}.{i + 1}.bias" in shapes]
            hidden = [shapes[f"{key}.{i}.bias"][0] for i in places]
            head = Head("head", (width, *hidden), activation, True)
            self.add_module(f"{task}_head", head)
        self.loss_weights = nn.ParameterDict(
            {task: torch.tensor(1.0) for task in older.TASKS}
        )
        self.adapt(shapes)

    def forward(self, features):
        tokens = self.tokens(features)
        one = self.multi_scale_fusion(tokens)
        other = self.multimodal_fusion(torch.stack(tokens, 1)).mean(1)
        shared = (one + other) / 2
        return {task: getattr(self, f"{task}_head")(shared) for task in older.TASKS}


class Named(nn.Module):
    """One sequence of layers under a name."""

    def __init__(self, name, *layers):
        super().__init__()
        self.add_module(name, nn.Sequential(*layers))
        self.layers = lambda: getattr(self, name)

    def forward(self, x):
        return self.layers()(x)


class Mtl(nn.Module):
    def __init__(self, shapes, *, heads):
        super().__init__()
        key = "multimodal_fusion.transformer.layers."
        width = shapes["multimodal_fusion.pos_encoding"][-1]
        for name in older.MODALITIES:
            inputs = shapes[f"{name}_encoder.encoder.0.weight"][1]
            encoder = Named(
                "encoder",
                *(nn.Linear(inputs, 2 * width), nn.ReLU(), nn.Dropout(0.3)),
                *(nn.Linear(2 * width, width), nn.ReLU(), nn.Dropout(0.3)),
            )
            self.add_module(f"{name}_encoder", encoder)
        self.multimodal_fusion = nn.Module()
        self.multimodal_fusion.pos_encoding = nn.Parameter(torch.zeros(1, 4, width))
        ffn = shapes[f"{key}0.linear1.bias"][0]
        self.multimodal_fusion.transformer = transformer(
            width, heads, ffn, count(shapes, key)
        )
        self.tasks = [
            task for task in older.TASKS if f"{task}_head.head.0.bias" in shapes
        ]
        for task in self.tasks:
            one, two = (shapes[f"{task}_head.head.{i}.bias"][0] for i in (0, 3))
            head = Named(
                "head",
                *(nn.Linear(width, one), nn.ReLU(), nn.Dropout(0.2)),
                *(nn.Linear(one, two), nn.ReLU(), nn.Dropout(0.2)),
                nn.Linear(two, 1),
            )
            self.add_module(f"{task}_head", head)

    def forward(self, features):
        tokens = [
            getattr(self, f"{name}_encoder")(features[name]).mean(1)
            for name in older.MODALITIES
        ]
        x = torch.stack(tokens, 1) + self.multimodal_fusion.pos_encoding
        x = self.multimodal_fusion.transformer(x).mean(1)
        found = {task: getattr(self, f"{task}_head")(x) for task in self.tasks}
        if "overall" not in found:
            found["overall"] = sum(found.values()) / len(found)
        return found


class Baseline(nn.Module):
    def __init__(self, shapes):
        super().__init__()
        for name in older.MODALITIES:
            width, inputs = shapes[f"{name}_fc.0.weight"]
            layers = nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(0.2)
            self.add_module(f"{name}_fc", nn.Sequential(*layers))
        fused, together = shapes["fusion_fc.0.weight"]
        self.fusion_fc = nn.Sequential(
            nn.Linear(together, fused), nn.ReLU(), nn.Dropout(0.2)
        )
        for task in older.TASKS:
            self.add_module(f"{task}_head", nn.Linear(fused, 1))

    def forward(self, features):
        parts = [
            getattr(self, f"{name}_fc")(features[name].mean(1))
            for name in older.MODALITIES
        ]
        x = self.fusion_fc(torch.cat(parts, -1))
        return {task: getattr(self, f"{task}_head")(x) for task in older.TASKS}


class OptimizedMtl(nn.Module):
    def __init__(self, shapes, *, heads=16):
        super().__init__()
        frames, width = shapes["pos_encoding"]
        self.pos_encoding = nn.Parameter(torch.zeros(frames, width))
        self.feature_embedders = nn.ModuleDict()
        for name in older.MODALITIES:
            hidden, inputs = shapes[f"feature_embedders.{name}.0.weight"]
            self.feature_embedders[name] = nn.Sequential(
                *(nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(0.3)),
                nn.Linear(hidden, width),
            )
        self.embedded = "modality_embeddings.au" in shapes
        if self.embedded:
            self.modality_embeddings = nn.ParameterDict(
                {name: torch.zeros(1, 1, width) for name in older.MODALITIES}
            )
        layers = count(shapes, "transformer.layers.")
        self.transformer = transformer(width, heads, 4 * width, layers)
        self.task_heads = nn.ModuleDict()
        for task in older.TASKS:
            one, two = (shapes[f"task_heads.{task}.{i}.bias"][0] for i in (0, 3))
            self.task_heads[task] = nn.Sequential(
                *(nn.Linear(width, one), nn.ReLU(), nn.Dropout(0.3)),
                *(nn.Linear(one, two), nn.ReLU()),
                *(nn.Linear(two, 1), nn.Sigmoid()),
            )

    def forward(self, features):
        parts = []
        for name in older.MODALITIES:
            x = self.feature_embedders[name](features[name])
            parts.append(x + self.modality_embeddings[name] if self.embedded else x)
        x = torch.stack(parts).mean(0)
        x = self.transformer(x + self.pos_encoding[: x.shape[1]]).mean(1)
        return {task: head(x) for task, head in self.task_heads.items()}


NETWORKS = {
    "advanced": Advanced,
    "improved": Improved,
    "mtl": Mtl,
    "baseline": Baseline,
    "optimized_mtl": OptimizedMtl,
}


def count(shapes, prefix):
    return len({key[len(prefix) :].split(".")[0] for key in shapes if prefix in key})


def theirs(preset, values, features, **sizes):
    """Scores (B, 5) of the PyTorch module; every key must fit, as must every shape."""
    shapes = {key: value.shape for key, value in values.items()}
    with torch.device("meta"):
        network = NETWORKS[preset](shapes, **sizes).eval()
    tensors = {key: torch.from_numpy(value) for key, value in values.items()}
    network.load_state_dict(tensors, strict=True, assign=True)
    for module in network.modules():
        if isinstance(module, Head) and hasattr(module, "_score_range"):
            module.low, module.span = module._score_min, module._score_range
    with torch.inference_mode():
        found = network({name: torch.from_numpy(x) for name, x in features.items()})
    return np.stack([found[task][..., 0].numpy() for task in older.TASKS], -1)


def ours(preset, values, features, **sizes):
    with jax.enable_x64(values[next(iter(values))].dtype == np.float64):
        found = interop.from_state_dict(values, preset, **sizes).predict(features)
    return np.stack([found[task] for task in older.TASKS], -1)


def assert_equal(preset, values, features, **sizes):
    for dtype, tolerance in ((np.float32, 1e-5), (np.float64, 1e-9)):
        typed = {key: value.astype(dtype) for key, value in values.items()}
        given = {name: x.astype(dtype) for name, x in features.items()}
        expected = theirs(preset, typed, given, **sizes)
        found = ours(preset, typed, given, **sizes)
        assert found.dtype == expected.dtype == dtype
        off = np.abs(found - expected).max()
        print(
            f"{preset} {np.dtype(dtype)} {off:.1e}, spread {expected.std(0).min():.1e}"
        )
        assert off < tolerance
    return expected


@pytest.mark.parametrize("preset", NETWORKS)
def test_small_network_equals_pytorch(preset):
    values = older.fill(older.SHAPES[preset])
    expected = assert_equal(preset, values, older.draw(), **older.SIZES[preset])
    assert expected.std(axis=0).min() > 1e-3
    np.testing.assert_allclose(expected[0], test_interop.SCORES[preset], atol=1e-9)


@pytest.mark.parametrize("activation", ["tanh", "none"])
@pytest.mark.parametrize("preset", ["advanced", "improved"])
def test_other_activations_equal_pytorch(preset, activation):
    values = older.fill(older.SHAPES[preset])
    sizes = older.SIZES[preset] | {"activation": activation}
    assert_equal(preset, values, older.draw(), **sizes)


@pytest.mark.parametrize("preset", ["advanced", "improved"])
def test_unequal_frames_and_another_width_equal_pytorch(preset):
    features = older.draw(older.WIDTHS | {"visual": 7})
    features["audio"] = features["audio"][:, :4]
    values = older.fill(older.SHAPES[preset])
    assert_equal(preset, values, features, **older.SIZES[preset])


@pytest.mark.parametrize("preset", ["mtl", "baseline"])
def test_modalities_that_are_averaged_keep_all_their_frames(preset):
    features = older.draw()
    features["audio"] = features["audio"][:, :4]
    values = older.fill(older.SHAPES[preset])
    assert_equal(preset, values, features, **older.SIZES[preset])


def test_networks_without_optional_entries_equal_pytorch():
    plain = {
        key: shape
        for key, shape in older.SHAPES["optimized_mtl"].items()
        if not key.startswith("modality_embeddings.")
    }
    assert_equal("optimized_mtl", older.fill(plain), older.draw(), heads=2)
    four = {
        key: shape
        for key, shape in older.SHAPES["mtl"].items()
        if not key.startswith("overall_head.")
    }
    assert_equal("mtl", older.fill(four), older.draw(), heads=4)


def test_tensors_are_read_as_arrays():
    values = older.fill(older.SHAPES["baseline"], dtype=np.float32)
    tensors = {key: torch.from_numpy(value) for key, value in values.items()}
    features = older.draw(dtype=np.float32)
    given = {name: torch.from_numpy(x) for name, x in features.items()}
    one = interop.from_state_dict(tensors, "baseline").predict(given)
    other = interop.from_state_dict(values, "baseline").predict(features)
    assert all((one[task] == other[task]).all() for task in older.TASKS)


@pytest.mark.slow
@pytest.mark.skipif(not TABLES.is_file(), reason="set TQA_SHARED: key tables")
@pytest.mark.parametrize("table", range(9))
def test_network_of_full_size_equals_pytorch(table):
    name, found = list(json.loads(TABLES.read_text()).items())[table]
    preset = name.split("/")[0].split("(")[0]
    shapes = {key: tuple(shape) for key, (shape, _) in found["state_dict"].items()}
    first = {
        "optimized_mtl": "feature_embedders.{}.0.weight",
        "baseline": "{}_fc.0.weight",
        "advanced": "{}_encoder.net.0.weight",
    }.get(preset, "{}_encoder.encoder.0.weight")
    widths = {name: shapes[first.format(name)][1] for name in older.MODALITIES}
    heads = {"heads": 16 if "optimized" in name else 8}
    if preset in ("advanced", "improved"):
        heads["temporal_heads"] = 8
    values = older.fill(shapes, 0.05)
    features = older.draw(widths, 3, 12)
    assert_equal(preset, values, features, **({} if preset == "baseline" else heads))
    if preset != "baseline":
        assert interop.from_state_dict(values, preset).sizes.items() >= heads.items()

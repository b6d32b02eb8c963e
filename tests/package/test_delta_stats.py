from __future__ import annotations

import dataclasses
import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsehub.delta import Delta, ParameterDelta, delta_bytes
from sparsehub.deltafile import StoredDelta, validate_delta
from sparsehub.package import Manifest, read_manifest, read_package, write_package
from sparsehub.package.delta_stats import heat_map, histogram, kind_of, sizes, split_name
from sparsehub.package.manifest import TouchedParameter
from sparsehub.package.plots import draw_matrices, draw_pictures
from sparsehub.package.summary import summarize
from sparsehub.package.units import percent

GOLDEN = Path(__file__).parents[1] / "golden" / "package"
SHAPES = {
    "encoder.layer.0.attention.self.query.weight": (8, 8),
    "encoder.layer.0.attention.self.query.bias": (8,),
    "encoder.layer.0.output.dense.bias": (8,),
    "encoder.layer.0.output.LayerNorm.weight": (8,),
    "encoder.layer.10.attention.self.query.weight": (8, 8),
    "encoder.layer.2.attention.self.query.weight": (8, 8),
    "embeddings.word_embeddings.weight": (100, 8),
}


def stored(values: torch.Tensor, value_dtype: str = "float32") -> StoredDelta:
    part = ParameterDelta((len(values),), torch.arange(len(values)), values)
    return validate_delta(delta_bytes(Delta({"w": part}, "add", value_dtype)), {"w": part.shape}, value_dtype)


@pytest.fixture
def manifest() -> Manifest:
    golden = read_manifest(GOLDEN)
    touched = {name: TouchedParameter(shape, "sha256:" + "0" * 64, 4) for name, shape in SHAPES.items()}
    delta = dataclasses.replace(golden.delta, parameters=touched, nnz=28, density=28 / 2000)
    return dataclasses.replace(golden, delta=delta, backbone=dataclasses.replace(golden.backbone, parameters=2000))


def test_a_heat_map_has_a_row_a_layer_and_a_column_a_kind(manifest: Manifest) -> None:
    found = heat_map(manifest)
    assert found.layers == ("encoder.layer 0", "encoder.layer 2", "encoder.layer 10")
    assert found.kinds == ("attention.query", "biases", "norms")
    assert found.cells["encoder.layer 0", "attention.query"].density == 4 / 64
    assert found.cells["encoder.layer 0", "biases"].density == 8 / 16
    assert ("encoder.layer 2", "biases") not in found.cells
    assert {name: cell.nnz for name, cell in found.outside.items()} == {"embeddings.word_embeddings": 4}
    assert sum(cell.nnz for cell in (*found.cells.values(), *found.outside.values())) == manifest.delta.nnz


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("encoder.layer.3.output.dense.weight", ("encoder.layer", 3, "output.dense.weight")),
        ("layers.0.self_attn.q_proj.weight", ("layers", 0, "self_attn.q_proj.weight")),
        ("h.11.attn.c_attn.weight", ("h", 11, "attn.c_attn.weight")),
        ("decoder.block.2.layer.1.x", ("decoder.block", 2, "layer.1.x")),
        ("0.weight", ("", 0, "weight")),
        ("wte.weight", ("", None, "wte")),
    ],
)
def test_names_of_every_family_are_split(name: str, expected: tuple[str, int | None, str]) -> None:
    assert split_name(name) == expected


@pytest.mark.parametrize(
    ("rest", "kind"),
    [
        ("attention.self.query.weight", "attention.query"),
        ("attention.output.dense.weight", "attention.output"),
        ("self_attn.q_proj.weight", "self_attn.q_proj"),
        ("mlp.up_proj.bias", "biases"),
        ("output.LayerNorm.bias", "norms"),
        ("input_layernorm.weight", "norms"),
        ("ln_1.weight", "norms"),
        ("attn.ln.weight", "norms"),
        ("weight", "weight"),
        ("mlp.lnx_proj.weight", "mlp.lnx_proj"),
    ],
)
def test_kinds_of_parameters(rest: str, kind: str) -> None:
    assert kind_of(rest) == kind


@pytest.mark.parametrize("value_dtype", ["float32", "float16", "bfloat16", "int8"])
def test_values_are_numbers_whatever_they_are_stored_as(value_dtype: str) -> None:
    values = torch.linspace(-1, 1, 300)
    found = torch.from_numpy(stored(values, value_dtype).floats())
    assert (found - values).abs().max() < 0.01


def test_a_histogram_counts_every_value_once() -> None:
    values = torch.cat([torch.randn(5000, generator=torch.Generator().manual_seed(1)), torch.tensor([100.0])])
    found = histogram(stored(values))
    assert sum(found.counts) + found.beyond == 5001
    assert found.largest == 100.0 and found.edges[-1] < 5
    assert found.mean_size == pytest.approx(float(values.abs().mean()), rel=1e-5)
    assert len(found.edges) == len(found.counts) + 1


@pytest.mark.parametrize("values", [torch.zeros(3), torch.tensor([2.0]), torch.full((5,), -1e-30)])
def test_a_histogram_of_hardly_anything(values: torch.Tensor) -> None:
    found = histogram(stored(values))
    assert sum(found.counts) + found.beyond == len(values)


def test_sizes_beside_lora(manifest: Manifest) -> None:
    found = sizes(manifest)
    assert found.lora_8 == 8 * 3 * (8 + 8) * 2
    assert found.lora_rank == pytest.approx(manifest.files["delta.safetensors"].size / (3 * 16 * 2))
    assert found.full == 2000 * 4


def test_the_pictures_are_png_and_show_something(manifest: Manifest) -> None:
    from PIL import Image

    pictures = draw_pictures(summarize(manifest), stored(torch.randn(200)))
    assert set(pictures) == {"density.png", "values.png"}
    for data in pictures.values():
        width, height = struct.unpack(">II", data[16:24])
        assert width > 400 and height > 200 and len(data) < 60_000
        grey = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
        assert 0.02 < (grey < 200).mean() < 0.98


def test_a_matrix_of_tasks_is_drawn() -> None:
    data = draw_matrices(["a", "b"], {"one": [[1, 0.2], [0.2, 1]], "other": [[1, 0.0], [0.0, 1]]})
    assert data.startswith(b"\x89PNG")


def test_without_matplotlib_a_package_is_written_without_pictures(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    golden = read_package(GOLDEN)
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    found = write_package(tmp_path / "bare", golden.manifest, golden.delta, golden.head)
    assert set(found.files) == {"README.md", "delta.safetensors", "head.safetensors"}
    assert "](" not in (tmp_path / "bare" / "README.md").read_text()


def test_a_carded_package_has_the_card_of_its_manifest(tmp_path: Path) -> None:
    golden = read_package(GOLDEN)
    found = write_package(tmp_path / "carded", golden.manifest, golden.delta, golden.head)
    assert set(found.files) == {"README.md", "delta.safetensors", "density.png", "head.safetensors", "values.png"}
    card = (tmp_path / "carded" / "README.md").read_text()
    assert "# golden 1.0.0" in card and "](density.png)" in card
    assert read_package(tmp_path / "carded").digest == found.digest


@pytest.mark.parametrize(
    ("share", "text"), [(0.5, "50%"), (0.0512, "5.1%"), (0.00512, "0.51%"), (0, "0.00%"), (1e-6, "<0.01%")]
)
def test_shares_for_people(share: float, text: str) -> None:
    assert percent(share) == text

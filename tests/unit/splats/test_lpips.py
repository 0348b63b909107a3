"""LPIPS against the same network written with torch.nn, on random weights (the real ones are not ours to ship)."""

from pathlib import Path

import pytest
import torch

from dist3dgs.errors import UserError
from dist3dgs.scenes.download.lpips_weights import fetch_lpips
from dist3dgs.splats.lpips import load_lpips

CHANNELS = (
    (3, 64, 11, 4, 2),
    (64, 192, 5, 1, 2),
    (192, 384, 3, 1, 1),
    (384, 256, 3, 1, 1),
    (256, 256, 3, 1, 1),
)


def features() -> torch.nn.Sequential:
    """`features` of torchvision's AlexNet."""
    nn, layers = torch.nn, []
    for i, (a, b, k, stride, padding) in enumerate(CHANNELS):
        layers += [nn.Conv2d(a, b, k, stride, padding), nn.ReLU()]
        layers += [nn.MaxPool2d(3, 2)] if i in (0, 1, 4) else []
    return nn.Sequential(*layers)


def test_fetched_converted_and_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = features()
    lin = [torch.rand(1, b, 1, 1) for _, b, *_ in CHANNELS]
    torch.save({f"features.{k}": v for k, v in net.state_dict().items()}, tmp_path / "alexnet.pth")
    torch.save({f"lin{i}.model.1.weight": w for i, w in enumerate(lin)}, tmp_path / "lin.pth")
    out = tmp_path / "weights" / "lpips-alex.safetensors"
    urls = [(tmp_path / name).as_uri() for name in ("alexnet.pth", "lin.pth")]
    fetch_lpips(out, tmp_path / "lock.yaml", *urls)

    monkeypatch.setenv("DIST3DGS_LPIPS", str(out))
    metric = load_lpips(torch.device("cpu"))
    assert metric is not None
    a, b = torch.rand(64, 80, 3), torch.rand(64, 80, 3)
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    x, y = (((t.permute(2, 0, 1)[None] * 2 - 1) - shift) / scale for t in (a, b))
    expected, level = 0.0, 0
    with torch.no_grad():
        for layer in net:
            x, y = layer(x), layer(y)
            if isinstance(layer, torch.nn.ReLU):
                unit = [t / (t.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for t in (x, y)]
                expected += float(((unit[0] - unit[1]) ** 2 * lin[level]).sum(1).mean())
                level += 1
    assert metric(a, b) == pytest.approx(expected, rel=1e-5)
    assert metric(a, a) == 0.0


def test_without_weights_there_is_no_metric(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIST3DGS_LPIPS", str(tmp_path / "none"))
    assert load_lpips(torch.device("cpu")) is None


def test_other_files_are_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_text("<html>not found</html>")
    with pytest.raises(UserError, match="not the weights"):
        fetch_lpips(tmp_path / "o", tmp_path / "l.yaml", *[(tmp_path / "a.pth").as_uri()] * 2)
    assert not (tmp_path / "o").exists()

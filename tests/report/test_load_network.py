# Copyright (c) monai_rrr contributors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.


from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.networks.nets import SegResNet
from torch import nn

from monai_rrr.errors import CheckpointError, ConfigError
from monai_rrr.report.load_network import load_network, load_weights

SMALL: dict[str, Any] = {
    "_target_": "SegResNet",
    "spatial_dims": 3,
    "init_filters": 8,
    "in_channels": "@channels",
    "out_channels": 3,
    "blocks_down": [1, 1],
    "blocks_up": [1],
}


def write(folder: Path, **entries: Any) -> Path:
    path = folder / "inference.yaml"
    path.write_text(yaml.safe_dump({"channels": 2, "network_def": SMALL, **entries}), "utf-8")
    return path


def small() -> SegResNet:
    return SegResNet(3, 8, 2, 3, blocks_down=(1, 1), blocks_up=(1,))


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {f"module.{k}": v for k, v in s.items()}]
)
def test_network_and_weights(tmp_path: Path, wrap: Any) -> None:
    trained = small()
    torch.save(wrap(trained.state_dict()), tmp_path / "model.pt")
    network = load_network(write(tmp_path), tmp_path / "model.pt")
    assert type(network) is SegResNet
    assert not network.training
    for name, value in trained.state_dict().items():
        assert torch.equal(network.state_dict()[name], value)


def test_rest_of_the_config_is_not_looked_at(tmp_path: Path) -> None:
    config = write(tmp_path, trainer={"_target_": "os.mkdir", "path": str(tmp_path / "canary")}, x="$1 / 0")
    load_network(config)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"network_def": {"_target_": "os.mkdir", "path": "canary"}}, "os.mkdir"),
        ({"network_def": {"_target_": "CSVDataset"}}, "CSVDataset"),
        ({"network_def": {**SMALL, "act": "$__import__('os').mkdir('canary')"}}, "$__import__"),
        ({"channels": "$2"}, r"$2"),
        ({"channels": {"_target_": "os.getpid"}}, "os.getpid"),
        ({"network_def": "%other.yaml::network_def"}, "%other.yaml"),
        (
            {"network_def": {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "builtins.eval"}]}},
            "builtins.eval",
        ),
    ],
)
def test_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: Any, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="expected plain values and networks, got") as error:
        load_network(write(tmp_path, **entries))
    assert error.value.code == "config-code"
    assert text in error.value.message
    assert not (tmp_path / "canary").exists()


def test_code_is_run_when_trusted(tmp_path: Path) -> None:
    network = load_network(write(tmp_path, channels="$1 + 3"), trust_code=True)
    assert network.state_dict()["convInit.conv.weight"].shape[1] == 4


@pytest.mark.parametrize(
    ("entries", "code", "message"),
    [
        ({"network_def": {**SMALL, "in_channels": "@missing"}}, "config-entry", "entry 'missing' to refer to"),
        ({"network_def": {**SMALL, "typo": 1}}, "config-network", "'network_def' can't be built"),
        ({"network_def": 3}, "config-network", "build a torch.nn.Module, got int"),
    ],
)
def test_config_without_a_network(tmp_path: Path, entries: Any, code: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_network(write(tmp_path, **entries))
    assert error.value.code == code
    assert message in error.value.message
    assert error.value.path == str(tmp_path / "inference.yaml")


def test_config_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected an entry 'net', got"):
        load_network(write(tmp_path), network_id="net")
    (tmp_path / "broken.yaml").write_text("a: [", "utf-8")
    with pytest.raises(ConfigError, match="expected a YAML or JSON config"):
        load_network(tmp_path / "broken.yaml")
    with pytest.raises(ConfigError, match="expected a YAML or JSON config"):
        load_network(tmp_path / "absent.json")


class Canary:
    def __reduce__(self) -> Any:
        return Path.mkdir, (Path("canary"),)


def test_checkpoint_with_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Canary()}, "model.pt")
    with pytest.raises(
        CheckpointError, match=r"expected a file of tensors, got other objects.*Hint: save the weights alone"
    ):
        load_weights(small(), "model.pt")
    assert not Path("canary").exists()


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_damaged_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="checkpoint-unreadable"):
        load_weights(small(), tmp_path / "model.pt")


@pytest.mark.parametrize(("content", "kinds"), [({"epoch": 3, "loss": 0.5}, "entries epoch, loss"), ([1, 2], "list")])
def test_checkpoint_without_weights(tmp_path: Path, content: Any, kinds: str) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=f"expected names and tensors, got {kinds}"):
        load_weights(small(), tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if "convInit" not in k}, "the file lacks convInit.conv.weight"),
        (lambda s: {**s, "head.bias": torch.ones(1)}, "the file has besides head.bias"),
        (
            lambda s: {**s, "convInit.conv.weight": torch.ones(1)},
            "has other shapes for convInit.conv.weight: (8, 2, 3, 3, 3)",
        ),
    ],
)
def test_weights_of_another_network(tmp_path: Path, change: Any, message: str) -> None:
    torch.save(change(small().state_dict()), tmp_path / "model.pt")
    network = small()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_weights(network, tmp_path / "model.pt")
    assert message in error.value.message
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_network_without_parameters_of_torch(tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text('{"network_def": {"_target_": "torch.nn.Identity"}}', "utf-8")
    assert isinstance(load_network(tmp_path / "net.json"), nn.Identity)

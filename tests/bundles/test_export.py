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


"""What is exported computes what the network computes, at any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")]

FILES = {"net_id": "network_def", "meta_file": "configs/metadata.json", "config_file": "configs/inference.yaml"}
SIZES = ((1, 4, 16, 16, 4), (1, 4, 32, 24, 7), (2, 4, 8, 16, 5))


@pytest.fixture(scope="module", params=["trained", "guided", "tuned"], ids=["equivariance", "guidance", "consistency"])
def bundle(request: pytest.FixtureRequest) -> Any:
    """Return each of the bundles with trained weights."""
    return request.getfixturevalue(request.param)


def test_network_fits_the_metadata(bundle: Any) -> None:
    for n in (1, 4):
        done = bundle.call("verify_net_in_out", **FILES, n=n)
        assert "verified with no error" in done.stdout + done.stderr


def test_torchscript_computes_the_same(bundle: Any) -> None:
    options = {"filepath": "models/model.ts", "ckpt_file": "models/model.pt", "channels": [4]}
    bundle.call("ckpt_export", **FILES, **options)
    network, scripted = bundle.network(channels=[4]), torch.jit.load(bundle.root / "models" / "model.ts")
    for size in SIZES:
        image = bundle.image(size)
        with torch.no_grad():
            torch.testing.assert_close(scripted(image), network(image), atol=1e-4, rtol=0)


def test_onnx_computes_the_same(bundle: Any) -> None:
    axes = {0: "batch", 2: "height", 3: "width", 4: "depth"}
    converter = {"input_names": ["image"], "output_names": ["pred"], "dynamic_axes": {"image": axes, "pred": axes}}
    options = {"filepath": "models/model.onnx", "ckpt_file": "models/model.pt", "channels": [4]}
    bundle.call("onnx_export", **FILES, **options, input_shape=[1, 4, 16, 16, 4], converter_kwargs=converter)
    network = bundle.network(channels=[4])
    session = onnxruntime.InferenceSession(bundle.root / "models" / "model.onnx")
    for size in SIZES:
        image = bundle.image(size)
        (found,) = session.run(None, {"image": image.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, network(image).numpy(), atol=1e-4, rtol=0)
        assert found.shape == (size[0], 3, *size[2:])
        assert 0 <= found.min() < found.max() <= 1
        assert not found[:, :, :4].any()

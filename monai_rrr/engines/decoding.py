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

"""Make a batch for a network that decodes some of its classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from ignite import distributed as idist

from monai_rrr.engines.views import PrepareViews
from monai_rrr.transforms.class_subset import RandomClassSubset

__all__ = ["PrepareDecoding"]


@dataclass(frozen=True)
class PrepareDecoding:
    """``prepare_batch`` that adds ``class_idx`` ``BT``, the classes to decode in this step.

    Args:
        subset: draws the classes from ``class_label`` ``BK``.
        prepare: what makes the batch otherwise.

    Example:
        >>> batch = {"image": torch.rand(1, 4, 8, 8, 4), "class_label": torch.tensor([[1.0, 0, 0, 0]])}
        >>> PrepareDecoding()(batch, "cpu", False)["class_idx"].shape
        torch.Size([1, 2])
    """

    subset: RandomClassSubset = RandomClassSubset()  # noqa: RUF009  (frozen)
    prepare: Callable[..., Mapping[str, Any]] = PrepareViews()  # noqa: RUF009  (frozen)

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the batch on the device."""
        # drawn before the transfer: how many classes there are must be known on the CPU
        drawn = self.subset(batchdata["class_label"], int(batchdata.get("iteration", 0)), idist.get_rank())
        return {**self.prepare({**batchdata, "class_idx": drawn}, device, non_blocking, **kwargs)}

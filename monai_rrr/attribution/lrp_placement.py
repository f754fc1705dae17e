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

"""Which relevance rule goes where in a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from monai_rrr.attribution.lrp_rules import Epsilon, Rule, WSquare, ZPlus

__all__ = ["LRPRules"]


@dataclass(frozen=True)
class LRPRules:
    """Which rule goes where. The default is z+ with LRP-epsilon at the head and w^2 at the image.

    The first layer gets a rule that does not multiply by the image, because z-scored tissue near 0 would get nothing;
    ``Flat`` would do too, but gives every modality the same.

    Args:
        body: rule of all layers for which nothing else is said.
        head: rule of ``Linear`` layers and of the last layer with weights; default: that of the body.
        first: rule of layers that see the image; default: that of the body. It goes before ``head``.
        by_layer: dotted name of a layer -> its rule; goes before all others.

    Example:
        >>> LRPRules(Epsilon(), None, None)  # lrp_eps
        LRPRules(body=Epsilon(eps=1e-06), head=None, first=None, by_layer={})
    """

    body: Rule = ZPlus()  # noqa: RUF009  (frozen)
    head: Rule | None = Epsilon()  # noqa: RUF009
    first: Rule | None = WSquare()  # noqa: RUF009
    by_layer: Mapping[str, Rule] = field(default_factory=dict)

    def rule_of(self, name: str, first: bool, last: bool) -> Rule:
        """Return the rule of a layer."""
        if name in self.by_layer:
            return self.by_layer[name]
        if first and self.first is not None:
            return self.first
        if last and self.head is not None:
            return self.head
        return self.body

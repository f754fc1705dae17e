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
"""MONAI's data loader, whose errors keep their names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import monai.data

from monai_rrr.errors import named_error

__all__ = ["CaseLoader", "named_errors"]


class CaseLoader(monai.data.DataLoader):
    """``monai.data.DataLoader``, but a fault of a case arrives as the named error that it is.

    MONAI's ``Compose`` turns an error of a transform into ``RuntimeError: applying transform ...``, and the loader of
    torch one of a worker into a text. Here both arrive with class, case, field and path. Arguments are MONAI's.

    Raises:
        RRRError: What a transform raised, from this process or a worker.
    """

    def __iter__(self) -> Any:
        return named_errors(super().__iter__())


def named_errors(items: Iterable[Any]) -> Iterator[Any]:
    """Yield all items; a named error behind an exception of the iteration is raised in its place."""
    try:
        yield from items
    except Exception as error:
        named = named_error(error)
        if named is None or named is error:
            raise
        raise named from error

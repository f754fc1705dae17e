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

"""What an allocator says when memory is short, and what a user can do then."""

from __future__ import annotations

import torch

from monai_rrr.errors import InferenceError

__all__ = ["is_out_of_memory", "out_of_memory"]

_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory was short: of CUDA, torch on CPU, NumPy or Python."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def out_of_memory(shape: torch.Size, tried: str, hint: str, case_id: str | None = None) -> InferenceError:
    """Return the error that says for which image memory was short, what was tried, and what helps."""
    message = f"expected memory for an image of shape {' x '.join(map(str, shape))}, got too little ({tried})"
    return InferenceError("out-of-memory", message, case_id=case_id, hint=hint)

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


"""Checkpoints that survive whatever happens while they are written, and resume exactly."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite import distributed as idist
from ignite.engine import Engine
from torch import nn

from monai_rrr.errors import CheckpointError
from monai_rrr.utils.manifest import manifest_path, read_manifest, write_manifest
from monai_rrr.utils.tensor_file import plain, read_tensors, write_errors, write_tensors
from monai_rrr.utils.weights import check_fit

__all__ = ["TrainingCheckpoint"]

SCHEMA = 1
# Schema n -> function that turns the content of a checkpoint of schema n into one of n + 1.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
_COUNTERS = ("skipped", "skipped_in_row", "best_metric", "best_metric_epoch")

logger = logging.getLogger(__name__)


class TrainingCheckpoint:
    """What a training needs to go on as if it had not been interrupted, in files that are checked before they are read.

    :func:`monai_rrr.engines.run` says when: at the end of epochs, on a signal, on a failure. A checkpoint holds the
    state of all ``objects``, the position of the trainer, the state of its gradient scaler, and the settings it was
    made with; tensors and plain values only. No random state is in it, because each is a function of seed and position.
    Files: ``checkpoint_<iteration>.pt``, each with a manifest; it exists once its manifest does. After a failure in the
    middle of a step there is ``crash_<iteration>.pt`` for an inquest; training never goes on from it.

    MONAI's ``CheckpointSaver`` and ``CheckpointLoader`` can't be used: the saver deletes the good file before it writes
    the next, in place, and saves in the middle of an epoch under the name of the final model when anything fails; the
    loader reads whatever the file has become.

    Args:
        folder: for the files, of this run alone. All processes of a run must see it.
        objects: name -> anything with ``state_dict`` and ``load_state_dict``: network (unwrapped), optimizer, schedule,
            and averaged network, if there is one.
        handlers: those of the trainer. Each one that has a state is kept, too, under the name of its class.
        settings: plain values that decide what the training does. A resumed run must have the same.
        cases: training cases; only a hash of their ids is kept, and must be the same.
        every: iterations between checkpoints; 0 for the end of each epoch only, which gets one in any case.
        keep: how many to keep, at least 2.
        resume: go on from the newest checkpoint, if there is one. False: refuse a folder with an unfinished run, and
            forget a finished one.
        use_older: when the newest checkpoint is damaged, go on from the one before.
        allow_config_change: go on although ``settings`` or ``cases`` differ.

    Raises:
        ValueError: When ``keep`` or ``every`` is too small.
    """

    def __init__(
        self,
        folder: str | Path,
        objects: Mapping[str, Any],
        handlers: Sequence[Any] = (),
        settings: Mapping[str, Any] | None = None,
        cases: Sequence[Mapping[str, Any]] = (),
        *,
        every: int = 0,
        keep: int = 2,
        resume: bool = False,
        use_older: bool = False,
        allow_config_change: bool = False,
    ) -> None:
        if keep < 2 or every < 0:
            raise ValueError(f"expected keep of at least 2 and every of at least 0, got {keep} and {every}")
        self.folder, self.objects = Path(folder), dict(objects)
        for index, handler in enumerate(handlers):
            if hasattr(handler, "state_dict") and hasattr(handler, "load_state_dict"):
                name = type(handler).__name__
                self.objects[f"{name}_{index}" if name in self.objects else name] = handler
        self.settings = _flat(settings or {})
        if cases:
            ids = json.dumps([str(case["case_id"]) for case in cases])
            self.settings["cases"] = f"sha256 {hashlib.sha256(ids.encode()).hexdigest()[:16]}"
        self.every, self.keep = every, keep
        self.resume, self.use_older, self.allow_config_change = resume, use_older, allow_config_change
        self._loaded: dict[str, Any] | None = None
        self._saved: int | None = None

    def due(self, iteration: int, epoch_ends: bool) -> bool:
        """Whether a checkpoint is wanted after an iteration."""
        return epoch_ends or (self.every > 0 and iteration % self.every == 0)

    def prepare(self, engine: Engine) -> bool:
        """Clear what an interrupted write left, and put the engine where the checkpoint was made.

        Returns:
            whether the training is complete with what was found.

        Raises:
            CheckpointError: ``run-unfinished``, ``checkpoint-damaged``, ``checkpoint-schema``, ``config-changed``, or
                what :func:`~monai_rrr.utils.tensor_file.read_tensors` raises.
        """
        self._loaded = None
        if engine.state.iteration > 0:  # goes on in the same process
            return False
        if idist.get_rank() == 0:
            with write_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._sweep()
        found = self.files()
        if not found:
            return False
        if not self.resume:
            self._start_anew(found)
            return False
        content = self._newest(found)
        changed = self._check(content, engine, found[0])
        position = content["position"]
        epochs, rest = divmod(position["iteration"], position["epoch_length"])
        same = position["epoch_length"] == engine.state.epoch_length
        # With batches of another size the interrupted epoch begins again.
        engine.state.iteration = epochs * engine.state.epoch_length + (rest if same else 0)
        engine.state.epoch = epochs
        for name in _COUNTERS:
            if position.get(name) is not None:
                setattr(engine.state, name, position[name])
        self._loaded, self._saved = content, engine.state.iteration
        return _status(found[0]) == "completed" and not changed

    def restore(self, engine: Engine) -> None:
        """Load the states; to be called when training has started, after all that loads other weights then."""
        if self._loaded is None:
            return
        for name, target in self.objects.items():
            target.load_state_dict(self._loaded["objects"][name])
        scaler = getattr(engine, "scaler", None)
        if scaler is not None and self._loaded["scaler"] is not None:
            scaler.load_state_dict(self._loaded["scaler"])
        logger.info("training goes on after iteration %d", engine.state.iteration)
        self._loaded = None

    def save(self, engine: Engine, crash: str | None = None) -> None:
        """Write a checkpoint of the present state, and then delete those too many. The first process writes.

        Args:
            engine: the trainer.
            crash: what went wrong, when the state is that in the middle of a step.

        Raises:
            CheckpointError: ``run-folder-gone`` or ``checkpoint-write``. All older checkpoints are intact.
        """
        state = engine.state
        if idist.get_rank() != 0 or (crash is None and self._saved == state.iteration):
            return
        if not self.folder.is_dir():
            message = "expected the folder of this run, it was deleted or moved while training"
            raise CheckpointError("run-folder-gone", message, path=self.folder, hint="start again")
        position = {name: getattr(state, name) for name in ("iteration", "epoch_length")}
        position |= {name: plain(getattr(state, name, None)) for name in _COUNTERS}
        scaler = getattr(engine, "scaler", None)
        content = {
            "schema": SCHEMA,
            "position": position,
            "settings": self._settings(engine),
            "objects": {name: target.state_dict() for name, target in self.objects.items()},
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        kind = "checkpoint" if crash is None else "crash"
        status = {"status": "unfinished"} if crash is None else {"status": "crash", "error": crash}
        path = self.folder / f"{kind}_{state.iteration:08d}.pt"
        write_tensors(path, content, {"schema": SCHEMA, "iteration": state.iteration, **status})
        if crash is None:
            self._saved = state.iteration
        with write_errors(self.folder):
            for old in self.files(kind)[self.keep if crash is None else 1 :]:
                _delete(old)

    def complete(self) -> None:
        """Note in the newest checkpoint that nothing is left to do."""
        if idist.get_rank() == 0 and self.files():
            path = self.files()[0]
            manifest = read_manifest(path)
            with write_errors(path):
                write_manifest(path, manifest["sha256"], {**_about(manifest), "status": "completed"})

    def files(self, kind: str = "checkpoint") -> list[Path]:
        """Checkpoints that were written to the end, newest first; whether they are intact is not looked at."""
        return sorted((p.with_suffix("") for p in self.folder.glob(f"{kind}_*.pt.json")), reverse=True)

    def _sweep(self) -> None:
        """Delete what was never finished."""
        for pattern in (".tmp_*", "checkpoint_*.pt", "crash_*.pt", "*.pt.new"):
            for path in self.folder.glob(pattern):
                if not manifest_path(path).exists():
                    path.unlink(missing_ok=True)

    def _start_anew(self, found: list[Path]) -> None:
        if _status(found[0]) != "completed":
            message = f"expected an empty folder, got an unfinished training: iteration {_iteration(found[0])}"
            hint = "go on with resume true, or take another folder, or delete this one"
            raise CheckpointError("run-unfinished", message, path=self.folder, hint=hint)
        logger.warning("checkpoints of the completed training in %s are replaced", self.folder)
        if idist.get_rank() == 0:
            for path in (*found, *self.files("crash")):
                _delete(path)

    def _newest(self, found: list[Path]) -> dict[str, Any]:
        """Content of the newest checkpoint, or of the newest intact one if an older one will do."""
        try:
            return _content(found[0])
        except CheckpointError as error:
            if error.code == "checkpoint-schema":
                raise
            damage = error
        for path in found[1:]:
            try:
                content = _content(path)
            except CheckpointError:
                continue
            text = f"the one after iteration {_iteration(path)} is intact"
            if self.use_older:
                logger.warning("%s; %s and is used", damage, text)
                return content
            hint = "go on from the older one with use_older true"
            message = f"{damage.message}; {text}"
            raise CheckpointError("checkpoint-damaged", message, path=found[0], hint=hint) from damage
        raise damage

    def _settings(self, engine: Engine) -> dict[str, Any]:
        state = engine.state
        return {
            **self.settings,
            "max_epochs": str(state.max_epochs),
            "iterations_per_epoch": str(state.epoch_length),
            "processes": str(idist.get_world_size()),
        }

    def _check(self, content: Mapping[str, Any], engine: Engine, path: Path) -> bool:
        """Whether settings differ; raises unless that is allowed."""
        known, mine = set(content["objects"]), set(self.objects)
        if known != mine:
            message = f"expected states of {sorted(mine)}, got those of {sorted(known)}"
            raise CheckpointError("checkpoint-mismatch", message, path=path)
        for name, target in self.objects.items():
            if isinstance(target, nn.Module):
                check_fit(target, content["objects"][name], path)
        then, now = content["settings"], self._settings(engine)
        keys = sorted(key for key in {*then, *now} if then.get(key) != now.get(key))
        if not keys:
            return False
        text = ", ".join(f"{key} ({then.get(key, 'none')}, now {now.get(key, 'none')})" for key in keys)
        if not self.allow_config_change:
            hint = "restore the settings, or go on with allow_config_change true"
            raise CheckpointError("config-changed", f"settings differ: {text}", path=path, field=keys[0], hint=hint)
        logger.warning("training goes on with other settings: %s", text)
        return True


def _content(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_tensors(path)
    schema = content.get("schema")
    while schema != SCHEMA and schema in MIGRATIONS:
        content = MIGRATIONS[schema](content)
        schema = content["schema"]
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        hint = "use the version of monai-rrr that wrote it" + (" or a newer one" if newer else "")
        message = f"expected schema {SCHEMA}, got {schema}, of {'a newer' if newer else 'an older'} version"
        raise CheckpointError("checkpoint-schema", message, path=path, hint=hint)
    return content


def _status(path: Path) -> str:
    try:
        return str(read_manifest(path).get("status"))
    except CheckpointError:
        return "damaged"


def _about(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {name: manifest[name] for name in ("schema", "iteration", "status")}


def _iteration(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])


def _delete(path: Path) -> None:
    # The manifest first: a file without one counts as never written.
    manifest_path(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _flat(value: Any, name: str = "") -> dict[str, str]:
    if isinstance(value, Mapping):
        items = [_flat(item, f"{name}.{key}" if name else str(key)) for key, item in value.items()]
        return {key: item for part in items for key, item in part.items()}
    return {name: str(value)}

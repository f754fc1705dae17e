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


"""The gate on whole folders: files that can't be read, code, links, logging, weights, overlays, overrides and trust."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_rrr.bundle import check_bundle, content_hash, pass_gate, read_document
from monai_rrr.errors import ConfigError
from monai_rrr.utils.files import atomic_write
from monai_rrr.utils.manifest import write_manifest

TRAIN = {
    "imports": ["$import os"],
    "bundle_root": ".",
    "load": {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader"},
    "run": ["$print(@bundle_root)"],
}


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a small bundle that passes; the current folder is its."""
    home = tmp_path / "bundle"
    for name in ("configs", "models", "docs", "eval"):
        (home / name).mkdir(parents=True)
    write(home / "configs" / "train.json", TRAIN)
    write(home / "configs" / "metadata.json", {"version": "0.1.0", "schema": "https://example.org/schema.json"})
    (home / "docs" / "README.md").write_text("text")
    monkeypatch.chdir(home)
    return home


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def refusals(bundle: Path, *others: str, **overrides: Any) -> list[str]:
    configs = [bundle / "configs" / name for name in ("train.json", *others)]
    return [str(refusal) for refusal in check_bundle(bundle, configs, overrides)]


def test_a_good_bundle_passes(bundle: Path) -> None:
    assert refusals(bundle) == []
    assert refusals(bundle, **{"dataset_dir": "/data", "load::allow_missing_keys": True}) == []
    pass_gate(bundle, [bundle / "configs" / "train.json"])


BOMB = "a: &a [x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("train.json", '{"a": 1, "a": 2}', "key 'a' occurs twice"),
        ("train.yaml", "a: 1\nb:\n  c: 1\n  c: 2\n", "key 'c' occurs twice, line 4"),
        ("train.yaml", BOMB, "at most 100000 values"),
        ("train.yaml", "a: &a [*a]\n", "at most 40 levels"),
        ("train.yaml", "a: !!python/object/apply:os.mkdir [canary]\n", "could not determine a constructor"),
        ("train.yaml", "a: !!python/name:os.mkdir\n", "could not determine a constructor"),
        ("train.yaml", "a: 2020-01-01\n", "expected plain values, got date at a"),
        ("train.yaml", "a: !!binary aGk=\n", "expected plain values, got bytes at a"),
        ("train.yaml", "a: 1\n---\nb: 1\n", "but found another document"),
        ("train.yaml", "? [a]\n: 1\n", "unhashable"),
        ("train.yaml", "a: [", "ParserError"),
        ("train.json", "{", "JSONDecodeError"),
        ("train.json", '{"a": ' + "[" * 50 + "]" * 50 + "}", "at most 40 levels"),
        ("train.json", '{"a": ' + "[" * 100_000 + "}", "levels"),
        ("train.json", "[1]", "expected a mapping, got list"),
        ("train.json", '{"a": "' + "x" * (1 << 20) + '"}', "expected at most 1048576 bytes"),
        ("train.conf", "{}", "expected a name that ends in .json"),
    ],
)
def test_f5_documents_that_can_not_be_read(tmp_path: Path, name: str, text: str, reason: str) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(ConfigError, match="config-unreadable") as error:
        read_document(path)
    assert reason in error.value.message
    assert error.value.path == str(path)
    assert not (tmp_path / "canary").exists()


def test_documents_are_utf8_and_exist(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ConfigError, match="UnicodeDecodeError"):
        read_document(tmp_path / "train.json")
    with pytest.raises(ConfigError, match="FileNotFoundError"):
        read_document(tmp_path / "absent.json")


def test_small_aliases_are_read(tmp_path: Path) -> None:
    assert read_document(write(tmp_path / "a.yaml", "a: &a [1]\nb: *a\n")) == {"a": [1], "b": [1]}


@pytest.mark.parametrize("name", ["scripts/net.py", "yaml.py", "torch.so", "eval/x.pyc", "docs/run.sh", "Net.PY"])
def test_s4_code_in_a_bundle_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).touch()
    assert refusals(bundle) == [f"{name}: it is code, and MONAI puts the folder of a bundle on Python's search path"]


def test_link_out_of_the_bundle_is_refused_and_can_not_be_trusted(bundle: Path, tmp_path: Path) -> None:
    (bundle / "docs" / "link").symlink_to(tmp_path)
    assert refusals(bundle) == ["docs/link: it is a link out of the bundle"]
    with pytest.raises(ConfigError, match="bundle-refused"):
        pass_gate(bundle, [bundle / "configs" / "train.json"], trust=content_hash(bundle))


LOGGING = "[loggers]\nkeys=root\n[handlers]\nkeys=h\n[formatters]\nkeys=f\n[logger_root]\nlevel=INFO\nhandlers=h\n"
LOGGING += "[handler_h]\nclass={}\nargs={}\nformatter=f\n[formatter_f]\nformat=%(message)s\n"


@pytest.mark.parametrize("arguments", ["(sys.stdout,)", "()", "(sys.stderr,)", ""])
def test_s8_plain_logging_passes(bundle: Path, arguments: str) -> None:
    write(bundle / "configs" / "logging.conf", LOGGING.format("StreamHandler", arguments))
    assert refusals(bundle) == []


@pytest.mark.parametrize(
    ("kind", "arguments", "key"),
    [
        ("StreamHandler", "(__import__('os').mkdir('canary'),)", "args"),
        ("StreamHandler", "(os.mkdir('canary'),)", "args"),
        ("StreamHandler", "[x for x in (1,)]", "args"),
        ("StreamHandler", "(sys.modules,)", "args"),
        ("StreamHandler", "(", "args"),
        ("__import__('os').mkdir('canary')", "()", "class"),
        ("eval", "('1',)", "class"),
        ("FileHandler", "('x.py', 'w')", "class"),
        ("logging.handlers.SocketHandler", "('example.org', 1)", "class"),
    ],
)
def test_s8_logging_that_runs_or_writes_is_refused(bundle: Path, kind: str, arguments: str, key: str) -> None:
    write(bundle / "configs" / "logging.conf", LOGGING.format(kind, arguments))
    found = refusals(bundle)
    assert len(found) == 1
    assert found[0].startswith(f"configs/logging.conf /handler_h/{key}: ")
    assert not (bundle / "canary").exists()


@pytest.mark.parametrize("text", ["no section", "[a]\n[a]", "\udcff"])
def test_s8_logging_that_can_not_be_read_is_refused(bundle: Path, text: str) -> None:
    (bundle / "configs" / "logging.conf").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "configs/logging.conf /: it can't be read" in refusals(bundle)[0]


def test_s4_metadata_are_checked(bundle: Path) -> None:
    hostile = {"a": {"_target_": "os.mkdir", "path": "canary"}, "b": "$1", "c": "$import os"}
    write(bundle / "configs" / "metadata.json", hostile)
    found = [text.split(":")[0] for text in refusals(bundle)]
    assert sorted(set(found)) == [f"configs/metadata.json /{key}" for key in ("a/_target_", "b", "c")]


def test_s4_overrides_are_checked(bundle: Path) -> None:
    found = refusals(bundle, **{"x": "$os.mkdir('canary')", "load::_target_": "os.mkdir", "y": "%../z.json"})
    assert sorted({text.split(":")[0] for text in found}) == [f"command line /{key}" for key in ("load", "x", "y")]


@pytest.mark.parametrize("key", ["load::reader", "load#reader"])
def test_s4_an_overlay_that_changes_an_argument_is_seen_after_merging(bundle: Path, key: str) -> None:
    write(bundle / "configs" / "overlay.json", {key: "os.mkdir"})
    (found,) = refusals(bundle, "overlay.json")
    assert found.startswith("merged train.json, overlay.json /load: 'reader' must be 'ITKReader' or 'NibabelReader' or")
    assert found.endswith(", got 'os.mkdir'")


def test_an_overlay_that_changes_a_target_is_seen_after_merging(bundle: Path) -> None:
    write(bundle / "configs" / "train.json", {**TRAIN, "t": {"_target_": "monai_rrr.data.read_tags", "path": "@x"}})
    assert refusals(bundle) == []
    write(bundle / "configs" / "overlay.json", {"t::_target_": "monai_rrr.handlers.TermLogger"})
    assert "'path' must end in" in refusals(bundle, "overlay.json")[0]


def test_s4_the_first_configuration_lies_in_the_bundle(bundle: Path, tmp_path: Path) -> None:
    """MONAI takes metadata and logging from the folder of the first one: they would be other ones than were checked."""
    other = write(tmp_path / "train.json", TRAIN)
    (refusal,) = check_bundle(bundle, [other])
    assert (refusal.file, refusal.final) == (str(other), True)
    assert check_bundle(bundle, [bundle / "configs" / "train.json", write(tmp_path / "mine.json", {"epochs": 3})]) == []


def test_an_overlay_that_does_not_fit_is_refused(bundle: Path) -> None:
    write(bundle / "configs" / "overlay.json", {"none::b": 1})
    assert "they can't be merged: KeyError" in refusals(bundle, "overlay.json")[0]


@pytest.mark.parametrize(
    "macro", ["%../evil.json::a", "%/etc/evil.json::a", "%evil#a.json::a", "%configs/absent.json::a", "%#x.yaml::a"]
)
def test_s4_macro_that_leaves_the_bundle_is_refused(bundle: Path, macro: str) -> None:
    write(bundle.parent / "evil.json", {"a": 1})
    write(bundle / "configs" / "train.json", {**TRAIN, "x": [macro]})
    (found,) = refusals(bundle)
    assert found.startswith("configs/train.json /x/0: ")


def test_s4_macro_that_leaves_the_bundle_by_a_link_is_refused(bundle: Path) -> None:
    write(bundle.parent / "evil.json", {"a": 1})
    (bundle / "configs" / "inside.json").symlink_to(bundle.parent / "evil.json")
    write(bundle / "configs" / "train.json", {**TRAIN, "x": "%configs/inside.json"})
    assert any("leads out of the bundle" in text for text in refusals(bundle))


def test_s4_file_of_a_macro_is_checked_too(bundle: Path) -> None:
    write(bundle / "configs" / "train.json", {**TRAIN, "x": "%configs/part.json::a"})
    write(bundle / "configs" / "part.json", {"a": {"lr": 1}, "b": "%configs/more.yaml::c"})
    write(bundle / "configs" / "more.yaml", "c: 1\n")
    assert refusals(bundle) == []
    write(bundle / "configs" / "more.yaml", "c: [{_target_: os.mkdir, path: canary}]\n")
    assert [text.split(":")[0] for text in refusals(bundle)] == ["configs/more.yaml /c/0/_target_"]


def save(path: Path) -> Path:
    write_manifest(path, atomic_write(path, lambda file: torch.save({"w": torch.ones(2)}, file)))
    return path


def test_s3_weights_are_compared_with_their_manifest(bundle: Path) -> None:
    path = save(bundle / "models" / "model.pt")
    assert refusals(bundle) == []
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (found,) = refusals(bundle)
    assert found.startswith("models/model.pt: expected the SHA-256 of its manifest")
    with pytest.raises(ConfigError, match="bundle-refused"):
        pass_gate(bundle, [bundle / "configs" / "train.json"], trust=content_hash(bundle))


def test_s3_weights_without_a_manifest_are_refused(bundle: Path) -> None:
    torch.save({"w": torch.ones(2)}, bundle / "models" / "model.pt")
    assert refusals(bundle) == ["models/model.pt: expected model.pt.json with its SHA-256 beside it, got none"]
    train, digest = bundle / "configs" / "train.json", content_hash(bundle)
    pass_gate(bundle, [train], trust=digest)
    torch.save({"w": torch.zeros(2)}, bundle / "models" / "model.pt")
    with pytest.raises(ConfigError, match="bundle-hash"):
        pass_gate(bundle, [train], trust=digest)


def test_trust_lets_reviewed_code_through_until_anything_changes(bundle: Path) -> None:
    train = bundle / "configs" / "train.json"
    write(train, {**TRAIN, "x": "$getattr(os, 'sep')", "y": {"_target_": "scripts.net.Net"}})
    (bundle / "scripts").mkdir()
    (bundle / "scripts" / "net.py").write_text("class Net: ...")
    with pytest.raises(ConfigError, match="bundle-refused") as error:
        pass_gate(bundle, [train])
    for text in ("scripts/net.py: it is code", "train.json /x: ", "train.json /y/_target_: "):
        assert text in str(error.value)
    digest = str(error.value.hint).split()[-1]
    assert digest == content_hash(bundle)
    pass_gate(bundle, [train], trust=digest)
    save(bundle / "models" / "model.pt")
    (bundle / "eval" / "metrics.csv").write_text("made by a run")
    pass_gate(bundle, [train], trust=digest.upper())
    (bundle / "scripts" / "net.py").write_text("class Net: pass")
    with pytest.raises(ConfigError, match=f"bundle-hash.*expected the content hash {digest}, got "):
        pass_gate(bundle, [train], trust=digest)


def test_wrong_trust_is_refused_for_a_good_bundle_too(bundle: Path) -> None:
    with pytest.raises(ConfigError, match="bundle-hash"):
        pass_gate(bundle, [bundle / "configs" / "train.json"], trust="0" * 64)


CHANGES: list[Callable[[Path], object]] = [
    lambda home: (home / "configs" / "new.yaml").write_text("a: 1"),
    lambda home: (home / "configs" / "train.json").rename(home / "configs" / "other.json"),
    lambda home: (home / "docs" / "README.md").write_text("other"),
    lambda home: (home / "eval" / "x.py").write_text(""),
    lambda home: (home / "models" / "model.ts").write_text(""),
]


@pytest.mark.parametrize("change", CHANGES)
def test_content_hash_sees_every_file_that_counts(bundle: Path, change: Callable[[Path], object]) -> None:
    before = content_hash(bundle)
    change(bundle)
    assert content_hash(bundle) != before


def test_unreadable_file_can_not_be_trusted(bundle: Path) -> None:
    write(bundle / "configs" / "train.json", '{"a": 1, "a": 2}')
    with pytest.raises(ConfigError, match=r"(?s)key 'a' occurs twice.*take the bundle from its source again"):
        pass_gate(bundle, [bundle / "configs" / "train.json"], trust=content_hash(bundle))

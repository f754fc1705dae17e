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


"""Attacks by configuration: each class of them is refused, by file and key, before anything is built or evaluated.

CANARY stands for a folder that the attack would make. For some, MONAI alone is shown to make it: the corpus is no list
of strings that would do nothing.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from monai_rrr.bundle import check_content

MKDIR = "__import__('os').mkdir('CANARY')"

# name -> (configuration, key of the refusal)
TARGETS: dict[str, tuple[dict[str, Any], str]] = {
    "target outside": ({"a": {"_target_": "os.mkdir", "path": "CANARY"}}, "/a/_target_"),
    "target in a nested list": ({"a": [1, [{"b": {"_target_": "os.mkdir", "path": "CANARY"}}]]}, "/a/1/0/b/_target_"),
    "target as argument": (
        {"a": {"_target_": "torch.nn.Sequential", "x": {"_target_": "os.mkdir", "path": "CANARY"}}},
        "/a/x/_target_",
    ),
    "builtin without a module": ({"a": {"_target_": "eval", "source": MKDIR}}, "/a/_target_"),
    "builtins module": ({"a": {"_target_": "builtins.exec", "source": MKDIR}}, "/a/_target_"),
    "module of an allowed module": (
        {"a": {"_target_": "monai.data.utils.os.mkdir", "path": "CANARY"}},
        "/a/_target_",
    ),
    "module of torch": ({"a": {"_target_": "torch.nn.modules.module.torch.os.mkdir", "path": "CANARY"}}, "/a/_target_"),
    "module of ours": ({"a": {"_target_": "monai_rrr.data.cache.os.mkdir", "path": "CANARY"}}, "/a/_target_"),
    "private module": ({"a": {"_target_": "torch.utils.data._utils.worker.os.mkdir", "path": "CANARY"}}, "/a/_target_"),
    "builtins of a module": ({"a": {"_target_": "monai.data.utils.__builtins__.get"}}, "/a/_target_"),
    "globals of a function": ({"a": {"_target_": "monai.data.partition_dataset.__globals__.get"}}, "/a/_target_"),
    "imported function": ({"a": {"_target_": "monai.networks.nets.densenet.load_state_dict_from_url"}}, "/a/_target_"),
    "imported class": ({"a": {"_target_": "monai.data.dataset.Path", "x": "CANARY"}}, "/a/_target_"),
    "method": ({"a": {"_target_": "torch.nn.Module.compile"}}, "/a/_target_"),
    "config parser": ({"a": {"_target_": "monai.bundle.ConfigParser", "config": {}}}, "/a/_target_"),
    "config parser by its short name": ({"a": {"_target_": "ConfigParser", "config": {}}}, "/a/_target_"),
    "config workflow": ({"a": {"_target_": "ConfigWorkflow", "config_file": "x.json"}}, "/a/_target_"),
    "pythonic workflow": ({"a": {"_target_": "monai.bundle.PythonicWorkflow"}}, "/a/_target_"),
    "bundle download": ({"a": {"_target_": "monai.bundle.download", "name": "x"}}, "/a/_target_"),
    "bundle load": ({"a": {"_target_": "monai.bundle.load", "name": "x"}}, "/a/_target_"),
    "bundle run": ({"a": {"_target_": "monai.bundle.run", "config_file": "x"}}, "/a/_target_"),
    "instantiate": ({"a": {"_target_": "monai.utils.module.instantiate"}}, "/a/_target_"),
    "optional import": ({"a": {"_target_": "monai.utils.optional_import", "module": "antigravity"}}, "/a/_target_"),
    "run_cmd": ({"a": {"_target_": "monai.utils.misc.run_cmd", "cmd_list": ["mkdir", "CANARY"]}}, "/a/_target_"),
    "download and extract": ({"a": {"_target_": "monai.apps.download_and_extract", "url": "u"}}, "/a/_target_"),
    "extractall": ({"a": {"_target_": "monai.apps.utils.extractall", "filepath": "x.zip"}}, "/a/_target_"),
    "decathlon dataset": ({"a": {"_target_": "DecathlonDataset", "root_dir": "."}}, "/a/_target_"),
    "federated client": ({"a": {"_target_": "monai.fl.client.MonaiAlgo"}}, "/a/_target_"),
    "auto3dseg": ({"a": {"_target_": "monai.auto3dseg.utils.algo_from_json", "filename": "x"}}, "/a/_target_"),
    "nnunet runner": ({"a": {"_target_": "monai.apps.nnunet.nnUNetV2Runner", "input_config": "x"}}, "/a/_target_"),
    "torch load": ({"a": {"_target_": "torch.load", "f": "x.pt", "weights_only": False}}, "/a/_target_"),
    "torch hub": ({"a": {"_target_": "torch.hub.load", "repo_or_dir": "a/b"}}, "/a/_target_"),
    "torch jit": ({"a": {"_target_": "torch.jit.load", "f": "model.pt"}}, "/a/_target_"),
    "torch package": ({"a": {"_target_": "torch.package.PackageImporter", "x": "f"}}, "/a/_target_"),
    "cpp extension": ({"a": {"_target_": "torch.utils.cpp_extension.load_inline", "name": "x"}}, "/a/_target_"),
    "model zoo of torch": ({"a": {"_target_": "torch.utils.model_zoo.load_url", "url": "u"}}, "/a/_target_"),
    "library of operators": ({"a": {"_target_": "torch.ops.load_library", "path": "x"}}, "/a/_target_"),
    "data pipes": ({"a": {"_target_": "torch.utils.data.datapipes.iter.FileOpener"}}, "/a/_target_"),
    "compiled layer": ({"a": {"_target_": "GaussianMixtureModel", "channel_count": 1}}, "/a/_target_"),
    "hub in a loss": ({"a": {"_target_": "PerceptualLoss", "spatial_dims": 3}}, "/a/_target_"),
    "weights of the network": ({"a": {"_target_": "Transchex", "pretrained": False}}, "/a/_target_"),
    "text file of free name": (
        {"a": {"_target_": "LogfileHandler", "output_dir": ".", "filename": "x.py"}},
        "/a/_target_",
    ),
    "tracking server": ({"a": {"_target_": "MLFlowHandler", "tracking_uri": "u"}}, "/a/_target_"),
    "tracking server of ignite": ({"a": {"_target_": "ignite.handlers.wandb_logger.WandBLogger"}}, "/a/_target_"),
    "writer of ours": ({"a": {"_target_": "monai_rrr.data.write_tags", "path": "x", "tags": {}}}, "/a/_target_"),
    "file tools of ours": ({"a": {"_target_": "monai_rrr.utils.files.atomic_write", "path": "x"}}, "/a/_target_"),
    "loader of ours that trusts": (
        {"a": {"_target_": "monai_rrr.report.load_network", "config": "x", "trust_code": True}},
        "/a/_target_",
    ),
    "module": ({"a": {"_target_": "torch.nn"}}, "/a/_target_"),
    "scripts of the bundle": ({"a": {"_target_": "scripts.net.Net"}}, "/a/_target_"),
    "unknown name": ({"a": {"_target_": "NoSuchClass"}}, "/a/_target_"),
    "target by reference": ({"name": "os.mkdir", "a": {"_target_": "@name", "path": "CANARY"}}, "/a/_target_"),
    "target by macro": ({"name": "os.mkdir", "a": {"_target_": "%name", "path": "CANARY"}}, "/a/_target_"),
    "target by expression": ({"a": {"_target_": "$'os.' + 'mkdir'", "path": "CANARY"}}, "/a/_target_"),
    "target that is no text": ({"a": {"_target_": {"_target_": "torch.nn.ReLU"}}}, "/a/_target_"),
    "target in an overlay": ({"a::_target_": "os.mkdir"}, "/a::_target_"),
    "target in an old overlay": ({"a#0#_target_": "os.mkdir"}, "/a#0#_target_"),
    "debugger": ({"a": {"_target_": "torch.nn.ReLU", "_mode_": "debug"}}, "/a/_mode_"),
    "debugger by reference": ({"m": "debug", "a": {"_target_": "torch.nn.ReLU", "_mode_": "@m"}}, "/a/_mode_"),
    "breakpoint": ({"a": {"_target_": "torch.nn.ReLU", "_debug_": True}}, "/a/_debug_"),
    "callable": ({"a": {"_target_": "os.mkdir", "_mode_": "callable"}}, "/a/_target_"),
    "description": ({"a": {"_target_": "torch.nn.ReLU", "_desc_": f"${MKDIR}"}}, "/a/_desc_"),
    "requirement": ({"a": {"_target_": "torch.nn.ReLU", "_requires_": [f"${MKDIR}"]}}, "/a/_requires_/0"),
    "switch": ({"a": {"_target_": "torch.nn.ReLU", "_disabled_": f"${MKDIR}"}}, "/a/_disabled_"),
    "reader looked up by name": (
        {"a": {"_target_": "LoadImaged", "keys": "x", "reader": "os.mkdir", "path": "CANARY"}},
        "/a",
    ),
    "reader by reference": ({"r": "os.mkdir", "a": {"_target_": "LoadImaged", "keys": "x", "reader": "@r"}}, "/a"),
    "writer looked up by name": ({"a": {"_target_": "SaveImaged", "keys": "x", "writer": "os.mkdir"}}, "/a"),
    "merger looked up by name": (
        {"a": {"_target_": "monai.inferers.PatchInferer", "merger_cls": "os.mkdir", "path": "CANARY"}},
        "/a",
    ),
    "reader that unpickles": (
        {"a": {"_target_": "LoadImaged", "keys": "x", "reader": "NumpyReader", "allow_pickle": True}},
        "/a",
    ),
    "cache that unpickles": (
        {"a": {"_target_": "PersistentDataset", "data": [], "cache_dir": "c", "weights_only": False}},
        "/a",
    ),
    "switch by reference": (
        {"f": False, "a": {"_target_": "PersistentDataset", "data": [], "weights_only": "@f"}},
        "/a",
    ),
    "download of weights": ({"a": {"_target_": "resnet18", "pretrained": True}}, "/a"),
    "download of weights by default": ({"a": {"_target_": "EfficientNetBN", "model_name": "efficientnet-b0"}}, "/a"),
    "download of an address": ({"a": {"_target_": "HoVerNet", "pretrained_url": "u"}}, "/a"),
    "options of the compiler": (
        {"a": {"_target_": "SupervisedTrainer", "compile": True, "compile_kwargs": {"options": {"cpp.cxx": "x"}}}},
        "/a",
    ),
    "callable of a loader": ({"a": {"_target_": "LoadImage", "_mode_": "callable"}}, "/a"),
    "record under the name of code": (
        {"a": {"_target_": "monai_rrr.handlers.RunRecord", "path": "/x/.bashrc", "settings": {"a": "$(touch x)"}}},
        "/a",
    ),
    "table under the name of code": (
        {"a": {"_target_": "monai_rrr.handlers.TermLogger", "path": "$'x' + '.sh'"}},
        "/a",
    ),
    "table under any name": ({"n": "x.sh", "a": {"_target_": "monai_rrr.handlers.TermLogger", "path": "@n"}}, "/a"),
    "checkpoint under the name of code": (
        {"a": {"_target_": "CheckpointSaver", "save_dir": ".", "final_filename": "../x.py"}},
        "/a",
    ),
    "weights that are a program": ({"a": {"_target_": "CheckpointLoader", "load_path": "model.ts"}}, "/a/load_path"),
    "pickle": ({"a": "models/weights.pkl"}, "/a"),
    "address": ({"a": "https://example.org/model.pt"}, "/a"),
    "key with code": ({"a') or f('": {"b": 1}}, "/a') or f('"),
    "key of a mapping of settings": ({"+a": {"_target_": "torch.nn.ReLU"}}, "/+a"),
}
IMPORTS = {
    "import": "$import os, sys",
    "import of a shell": "$import subprocess",
    "import of a compiler": "$import ctypes",
    "import of a browser": "$import antigravity",
    "import of an importer": "$import importlib",
    "import of sys": "$import sys",
    "import of code of the bundle": "$from scripts import net",
    "import of a parser": "$from monai.bundle import ConfigParser",
    "import through a module": "$from monai.transforms.io.array import os",
    "import of a function through a module": "$from os import system",
    "import of everything": "$from os import *",
    "relative import": "$from . import net",
    "import under another name": "$import os as torch",
    "import and more": "$import os; os.mkdir('CANARY')",
    "import of a program loader": "$import torch.utils.cpp_extension",
    "import of pickle": "$import pickle as math",
}
EXPRESSIONS = {
    "hidden import": f"${MKDIR}",
    "after a space": f"$ {MKDIR}",
    "attribute of a module": "$os.system('mkdir CANARY')",
    "function of an allowed module": "$os.mkdir('CANARY')",
    "environment": "$os.environ.update(PATH='CANARY')",
    "eval": "$eval('1')",
    "exec": "$exec('import os')",
    "compile": "$compile('1', 'x', 'eval')",
    "open": "$open('CANARY', 'w')",
    "getattr": "$getattr(os, 'mkdir')('CANARY')",
    "setattr": "$setattr(torch, 'load', print)",
    "setattr by another name": "$setattr(torch.backends.cudnn, 'benchmark' + '', True)",
    "vars": "$vars(os)['mkdir']('CANARY')",
    "globals": "$globals()",
    "type": "$type('X', (), {})",
    "input": "$input()",
    "breakpoint": "$breakpoint()",
    "builtins": "$__builtins__['eval']('1')",
    "subclasses": "$().__class__.__base__.__subclasses__()",
    "globals of a lambda": "$(lambda: 0).__globals__['__builtins__']",
    "frame of a generator": "$(x for x in []).gi_frame.f_builtins",
    "code of a function": "$(lambda: 0).__code__",
    "format": "$'{0.__class__}'.format(1)",
    "format of a mapping": "$'{a.__class__}'.format_map({})",
    "text of code": "$f'{().__class__}'",
    "walrus": "$(f := print)('x')",
    "unknown name": "$name",
    "module as value": "$[torch]",
    "module through a module": "$monai.data.utils.os.mkdir('CANARY')",
    "torch load": "$torch.load('x.pt', weights_only=False)",
    "torch jit": "$torch.jit.load('model.pt')",
    "torch hub": "$torch.hub.load('a/b', 'c')",
    "operators": "$torch.ops.load_library('x')",
    "numpy load": "$np.load('x', allow_pickle=True)",
    "array into a file": "$np.array([1]).tofile('CANARY')",
    "tensor into a file": "$torch.ones(1).numpy().dump('CANARY')",
    "bound method handed on": "$list(map(np.zeros(1).tofile, ['CANARY']))",
    "numpy's compiler": "$np.f2py.compile('x')",
    "ctypes of an array": "$np.zeros(1).ctypes",
    "import by reference": "$@imports::0.replace('a', 'b')",
    "everything by reference": "$@['imports'][0]",
    "relative reference": "$@##imports#0.system('x')",
    "references by MONAI's own name": "$__local_refs",
    "reference with an attribute": "$@net.__init__.__globals__",
    "reference with a method": "$@net.compile()",
    "private attribute": "$@net._modules",
    "call of what a list holds": "$[print][0]('x')",
    "call of an argument": "$(lambda f: f('x'))(print)",
    "name that hides a module": "$[torch for torch in [1]]",
    "keywords from a mapping": "$monai.data.Dataset(**{'data': []})",
    "store of a process group": "$torch.distributed.init_process_group('gloo', 'tcp://example.org:1')",
    "address of a process group": "$torch.distributed.init_process_group(backend='gloo', init_method='tcp://x:1')",
    "loader handed on": "$list(map(monai.transforms.LoadImaged, ['x'], ['os.mkdir']))",
    "loader with positions": "$monai.transforms.LoadImaged('x', 'os.mkdir')",
    "loader with a reader": "$monai.transforms.LoadImaged(keys='x', reader='os.mkdir')",
    "record": "$monai_rrr.handlers.RunRecord(path='x.sh')",
    "unpickling reader": "$monai.data.NumpyReader(allow_pickle=True)",
    "workflow": "$monai.bundle.ConfigWorkflow('x')",
    "partial": "$functools.partial(os.mkdir, 'CANARY')",
    "pickle": "$'a.pkl'",
    "printing into an object": "$print('x', file=@writer)",
    "letters of another width": "$\uff4f\uff50\uff45\uff4e('CANARY', 'w')",
    "statement": "$del x",
    "two lines": "$1\n2",
    "too long": "$" + "1+" * 2000 + "1",
    "too deep": "$" + "(" * 400 + "1" + ")" * 400,
    "too nested": "$" + "~" * 1900 + "1",
    "no expression": "$",
    "null": "$'\0'",
    "awaiting": "$[x async for x in y]",
}
BOUND = {"imports": ["$import os", "$import torch.distributed", "$import monai_rrr"]}
CORPUS: dict[str, tuple[dict[str, Any], str]] = {
    **TARGETS,
    **{name: ({"imports": [text]}, "/imports/0") for name, text in IMPORTS.items()},
    "import elsewhere": ({"a": {"b": "$import os"}}, "/a/b"),
    "import as initialization": ({"initialize": ["$import os"]}, "/initialize/0"),
    "whole configuration by macro": ({**BOUND, "x": "%", "a": "$@x['imports'][0].replace('p', 'q')"}, "/x"),
    "whole configuration by relative macro": ({"x": "%#"}, "/x"),
    "whole file by macro": ({"x": "%configs/train.json"}, "/x"),
    "whole configuration by reference": ({"x": "@"}, "/x"),
    "import under a private name": ({"imports": ["$import os as __local_refs"]}, "/imports/0"),
    "import behind a separator": ({"imports": ["$import os#x"]}, "/imports/0"),
    "key of a relative reference": ({"x.y": {"a": 1, "b": "$[1][@#a]"}}, "/x.y/b"),
    "reference to imports": ({"a": "@imports::0"}, "/a"),
    "macro of imports": ({"a": "%imports::0"}, "/a"),
    **{f"expression: {name}": ({**BOUND, "a": [text]}, "/a/0") for name, text in EXPRESSIONS.items()},
}
LIVE = (
    *("target outside", "target in a nested list", "module of an allowed module"),
    *("target by reference", "target by expression", "reader looked up by name", "description", "switch"),
    *("expression: hidden import", "expression: function of an allowed module", "expression: getattr"),
    *("expression: array into a file", "expression: bound method handed on", "run_cmd"),
    *("expression: module through a module", "expression: vars"),
)


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "canary"


def armed(config: Any, canary: Path) -> Any:
    return json.loads(json.dumps(config).replace("CANARY", str(canary)))


def test_the_corpus_is_large() -> None:
    assert len(CORPUS) >= 150


@pytest.mark.parametrize("name", CORPUS)
def test_s4_attack_is_refused_by_key(name: str, canary: Path) -> None:
    config, key = CORPUS[name]
    refusals = check_content(armed(config, canary), "train.json")
    assert key in [refusal.key for refusal in refusals], [str(refusal) for refusal in refusals]
    assert {refusal.file for refusal in refusals} == {"train.json"}
    assert all(refusal.reason for refusal in refusals)
    assert list(canary.parent.iterdir()) == []


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", LIVE)
def test_monai_alone_runs_the_attack(name: str, canary: Path) -> None:
    parser = ConfigParser(armed(CORPUS[name][0], canary))
    with contextlib.suppress(Exception):  # many attacks end in an error after their deed
        parser.get_parsed_content("a")
    assert canary.exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_monai_alone_runs_code_that_stands_in_a_key(canary: Path) -> None:
    """MONAI puts the keys around a relative reference into the code of the expression."""
    entry = {"k": 0, "k or os.mkdir('CANARY') or 0": {"a": 0, "b": "$[0][@#a]"}}
    config = armed({"imports": ["$import os"], "x": entry}, canary)
    refusals = check_content(config, "train.json")
    assert [refusal.reason[:5] for refusal in refusals] == ["a key", "a rel"]
    assert not canary.exists()
    with contextlib.suppress(Exception):
        ConfigParser(config).get_parsed_content(f"x::{list(config['x'])[1]}::b")
    assert canary.exists()


def test_every_attack_is_listed_not_only_the_first(canary: Path) -> None:
    config = {f"part{index}": armed(config, canary) for index, (config, _) in enumerate(CORPUS.values())}
    config.pop("imports", None)
    refused = {refusal.key.split("/")[1] for refusal in check_content(config, "all.json")}
    assert len(refused) >= len(CORPUS) - 3
    assert not canary.exists()

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


"""Static checks of every bundle: files, configurations, overlays and metadata fit together."""

from __future__ import annotations

import json
import pydoc
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow, verify_metadata
from monai.bundle.config_item import ConfigComponent
from monai.bundle.properties import InferProperties, TrainProperties
from monai.bundle.reference_resolver import ReferenceResolver

import monai_rrr

REPOSITORY = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.parents[1] for path in REPOSITORY.glob("bundles/*/configs/metadata.json"))
ALONE = ("train", "inference")
SCHEMA = Path(__file__).with_name("metadata_schema.json")
BASELINE = "baseline"
ANNOTATORS = "brats_mri_annotator_tendency"
DRAWN = (ANNOTATORS, "brats_mri_right_reasons")  # trained on what annotators drew
# where it is not plain_cam
BASELINES = {"brats_mri_tied_autoencoder": "tags_only", ANNOTATORS: "expectation_maximization"}
CHANNELS = {"brats_mri_tied_autoencoder": [4, 8], ANNOTATORS: [4, 8]}  # where one level is not enough

# MONAI's advice about configurations from strangers, and about schemas that it downloads: ours is a file
pytestmark = [
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    pytest.mark.filterwarnings("ignore:No hash value provided:UserWarning"),
]


def runs() -> list[Any]:
    """Every list of configuration files that a user may run."""
    found = []
    for bundle in BUNDLES:
        overlays = sorted(p.stem for p in (bundle / "configs").glob("*.yaml") if p.stem not in ALONE)
        files = [("train",), ("inference",), *(("train", name) for name in overlays)]
        found += [pytest.param(bundle, names, id=f"{bundle.name}-{'-'.join(names)}") for names in files]
    return found


def parse(bundle: Path, names: tuple[str, ...]) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / f"{name}.yaml") for name in names])
    return parser


def walk(value: Any) -> Iterator[Any]:
    """Yield a value of a configuration and everything in it."""
    yield value
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        yield from walk(child)


def nodes(config: dict[str, Any]) -> dict[str, Any]:
    """Keys that must have a reader: those of the top level, and those inside groups such as ``train``."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and "_target_" not in value and key in ("train", "validate"):
            found.update({f"{key}::{name}": child for name, child in value.items()})
        else:
            found[key] = value
    return found


def unread(config: dict[str, Any], roots: set[str]) -> set[str]:
    """Keys that nothing reads, directly or not, when a workflow begins at the roots."""
    parts = {key: value for key, value in nodes(config).items() if key != "_meta_"}
    reached: set[str] = set()
    waiting = [key for key in parts if key in roots]
    while waiting:
        key = waiting.pop()
        if key in reached:
            continue
        reached.add(key)
        for value in walk(parts[key]):
            if isinstance(value, str):
                for reference in ReferenceResolver.match_refs_pattern(ReferenceResolver.normalize_id(value)):
                    waiting += [part for part in parts if reference == part or reference.startswith(f"{part}::")]
    return set(parts) - reached


def roots_of(names: tuple[str, ...]) -> set[str]:
    properties = InferProperties if names == ("inference",) else TrainProperties
    return {"imports", "initialize", "run", "finalize", *(item["id"] for item in properties.values())}


def test_there_are_bundles() -> None:
    assert "brats_mri_equivariant_cam" in [bundle.name for bundle in BUNDLES]


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
@pytest.mark.parametrize(
    "name",
    ["LICENSE", "models", "docs/README.md", "docs/data_license.txt"]
    + [f"configs/{name}" for name in ("metadata.json", "train.yaml", "evaluate.yaml", "inference.yaml")],
)
def test_files_of_the_specification_exist(bundle: Path, name: str) -> None:
    assert (bundle / name).exists()


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_bundles_hold_no_code(bundle: Path) -> None:
    assert not [path for path in bundle.rglob("*.py") if "eval" not in path.parts]


@pytest.mark.parametrize(("bundle", "names"), runs())
def test_every_target_resolves(bundle: Path, names: tuple[str, ...]) -> None:
    for value in walk(parse(bundle, names).get()):
        if ConfigComponent.is_instantiable(value):
            path = ConfigComponent(config=value).resolve_module_name()
            assert pydoc.locate(str(path)) is not None, f"{value['_target_']} can't be found"


@pytest.mark.parametrize(("bundle", "names"), runs())
def test_every_key_has_a_reader(bundle: Path, names: tuple[str, ...]) -> None:
    config = parse(bundle, names).get()
    idle = unread(config, roots_of(names))
    if len(names) > 1:  # an overlay may leave keys of training idle, but none that it brings
        idle -= set(nodes(parse(bundle, names[:1]).get()))
    assert not idle


def test_a_key_without_a_reader_is_found() -> None:
    config = {"run": ["$@train#trainer.run()"], "train": {"trainer": "@rate", "spare": 1}, "rate": 1, "ratio": 2}
    assert unread(config, {"run"}) == {"train::spare", "ratio"}


@pytest.mark.parametrize(("bundle", "names"), runs())
def test_expressions_are_plain(bundle: Path, names: tuple[str, ...]) -> None:
    for value in walk(parse(bundle, names).get()):
        if isinstance(value, str):
            assert not re.match(r"%.*\.(ya?ml|json)", value), f"{value} reads another file"
            assert "lambda" not in value


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_size_of_the_training_configuration_is_reported(bundle: Path, record_property: Any) -> None:
    text = (bundle / "configs" / "train.yaml").read_text()
    expressions = [v for v in walk(parse(bundle, ("train",)).get()) if isinstance(v, str) and v.startswith("$")]
    record_property(f"{bundle.name}_lines", len(text.splitlines()))
    record_property(f"{bundle.name}_expressions", len(expressions))
    assert expressions


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_training_and_inference_agree(bundle: Path) -> None:
    train, inference = parse(bundle, ("train",)).get(), parse(bundle, ("inference",)).get()
    constants = [key for key in set(train) & set(inference) if not isinstance(train[key], dict)]
    assert {"modalities", "num_classes", "spacing", "roi_size", "channels"} <= set(constants)
    for key in set(constants) - {"imports", "initialize", "run", "network"}:
        assert train[key] == inference[key], f"{key} differs"
    network = {key: value for key, value in inference["network_def"].items() if key != "output"}
    assert train["network_def"] == network
    assert train["whole_volume"] in inference["preprocessing"]["transforms"]
    assert train["validate"]["inferer"].get("depth") == inference["inferer"].get("depth")
    loading = inference["preprocessing"]["transforms"][1]
    assert loading == {"_target_": train["load"]["_target_"], "cache": "@cache"}
    assert inference["cache"] == {key: value for key, value in train["cache"].items() if key != "hashes"}
    assert "$@cache.expect(@verified.hashes)" in inference["initialize"]


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_evaluation_and_inference_agree(bundle: Path) -> None:
    evaluation = parse(bundle, ("train", "evaluate")).get()
    inference = parse(bundle, ("inference",)).get()
    # all but the answer to a server's request
    assert evaluation["validate"]["postprocessing"]["transforms"] == inference["postprocessing"]["transforms"][:-1]
    assert evaluation["validate"]["inferer"] == inference["inferer"]
    assert evaluation["flips"] == inference["flips"]


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_several_processes_write_once(bundle: Path) -> None:
    """Our handlers write in the first process only; the overlay switches off MONAI's by their place."""
    config = parse(bundle, ("train", "multi_gpu_train")).get()
    for group, writers in (
        ("train", {"TensorBoardStatsHandler"}),
        ("validate", {"StatsHandler", "TensorBoardStatsHandler"}),
    ):
        off = [handler for handler in config[group]["handlers"] if handler.get("_disabled_") == "$dist.get_rank() > 0"]
        assert {handler["_target_"].split(".")[-1] for handler in off} == writers


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_metadata_fits_versions_and_configuration(bundle: Path) -> None:
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    packages = {"monai": metadata["monai_version"], "torch": metadata["pytorch_version"]}
    packages |= {"numpy": metadata["numpy_version"], **metadata["required_packages_version"]}
    pins = (REPOSITORY / "constraints" / "constraints.txt").read_text()
    assert packages.pop("monai-rrr") == monai_rrr.__version__
    for name, wanted in packages.items():
        assert re.search(rf"^{name}=={re.escape(wanted)}( |;|$)", pins, re.M), f"{name} {wanted} is not what was tested"
    assert version("monai") == metadata["monai_version"]
    config = parse(bundle, ("inference",)).get()
    image = metadata["network_data_format"]["inputs"]["image"]
    output = metadata["network_data_format"]["outputs"]["pred"]
    assert list(image["channel_def"].values()) == config["modalities"]
    assert image["num_channels"] == len(config["modalities"])
    assert output["num_channels"] == config["num_classes"] == len(output.get("channels", output["channel_def"]))
    # MONAI Label takes channel_def for the values of the label map, which AnswerLabeld writes
    named = ["background", "necrotic and non-enhancing core", "edema", "enhancing tumor"]
    assert output["channel_def"] == {str(value): name for value, name in enumerate(named)}
    assert config["postprocessing"]["transforms"][-1]["_target_"] == "monai_rrr.transforms.AnswerLabeld"


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_metadata_is_valid(bundle: Path) -> None:
    verify_metadata(meta_file=str(bundle / "configs" / "metadata.json"), filepath=str(SCHEMA))


@pytest.mark.parametrize("key", ["required_packages_version", "network_data_format", "version"])
def test_metadata_without_a_required_key_is_refused(key: str, tmp_path: Path) -> None:
    metadata = json.loads((BUNDLES[0] / "configs" / "metadata.json").read_text())
    del metadata[key]
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=f"'{key}' is a required property"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(SCHEMA))


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("train",), "train"),
        (("train", "evaluate"), "train"),
        (("train", BASELINE), "train"),
        (("inference",), "infer"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else value,
)
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_properties_are_complete(
    bundle: Path, names: tuple[str, ...], kind: str, cohort: Any, team: Path, trained_weights: Path, tmp_path: Path
) -> None:
    names = tuple(BASELINES.get(bundle.name, "plain_cam") if name == BASELINE else name for name in names)
    workflow = ConfigWorkflow(
        config_file=[str(bundle / "configs" / f"{name}.yaml") for name in names],
        workflow_type=kind,
        logging_file=False,
        bundle_root=str(bundle),
        dataset_dir=str(team if bundle.name in DRAWN and kind == "train" else cohort.masked),
        output_dir=str(tmp_path),
        spacing=6.0,
        channels=CHANNELS.get(bundle.name, [4]),
        **({"checkpoint": str(trained_weights)} if names[-1] in ("evaluate", "inference") else {}),
        **({"tags_file": str(cohort.tags), "ckpt_dir": str(tmp_path)} if kind == "train" else {}),
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.finalize()


@pytest.fixture
def trained_weights(bundle: Path, tmp_path: Path) -> Path:
    """Return weights as training leaves them, from no training."""
    from monai_rrr.utils.tensor_file import write_tensors

    parser = parse(bundle, ("inference",))
    parser["channels"] = CHANNELS.get(bundle.name, [4])
    write_tensors(tmp_path / "model.pt", parser.get_parsed_content("network_def").state_dict())
    return tmp_path / "model.pt"

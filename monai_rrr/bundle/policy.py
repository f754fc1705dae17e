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

"""The policy of the gate as data: what bundles may name, and with which arguments.

The rule behind every entry: whatever it is given, it runs no code of the bundle's, starts no program, opens no
connection, unpickles nothing, and writes no text of the bundle's choice under a name of the bundle's choice.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "AREAS",
    "BUILTINS",
    "DENIED",
    "ENDINGS",
    "FILES",
    "FUNCTIONS",
    "LOCATED",
    "MEMBERS",
    "PARTICULAR",
    "SETTABLE",
    "SINGLE",
    "SWITCHES",
]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Where classes may be defined; functions only where the second table says so.
AREAS = (
    *(f"monai.{name}" for name in ("transforms", "losses", "metrics", "inferers", "handlers", "engines", "optimizers")),
    *(f"monai.{name}" for name in ("data", "visualize", "networks.nets", "networks.blocks", "networks.layers")),
    *(f"monai.apps.{name}" for name in ("detection", "pathology", "deepedit", "deepgrow", "nuclick", "vista3d")),
    *(f"monai.apps.{name}" for name in ("generation", "reconstruction")),
    *("torch.nn", "torch.optim", "torch.utils.data"),
    *("ignite.engine", "ignite.handlers", "ignite.metrics"),
    *(f"monai_rrr.{name}" for name in ("attribution", "losses", "transforms", "metrics", "data", "networks")),
    *(f"monai_rrr.{name}" for name in ("objectives", "engines", "inferers", "handlers")),
    *("monai_rrr.utils.lock", "monai_rrr.utils.provenance", "monai_rrr.report.save_tendency"),
)
FUNCTIONS = (
    *("monai.networks.nets", "monai.metrics", "torch.nn.functional", "torch.nn.init", "ignite.metrics"),
    *(area for area in AREAS if area.startswith("monai_rrr.")),
)
# What inside the areas still runs code, downloads, starts compilers, or writes text of the configuration's choice.
DENIED = (
    *("monai.losses.perceptual", "monai.networks.layers.gmm", "monai.networks.nets.transchex"),
    *("monai.networks.blocks.text_embedding", "monai.networks.nets.flexible_unet.FlexUNetEncoderRegister"),
    *("monai.networks.nets.resnet.get_pretrained_resnet_medicalnet", "monai.networks.nets.swin_unetr.filter_swinunetr"),
    *("monai.handlers.logfile_handler", "monai.handlers.mlflow_handler", "monai.handlers.clearml_handlers"),
    *("monai.handlers.trt_handler", "monai.inferers.merger.ZarrAvgMerger", "monai.data.csv_saver"),
    *("monai.transforms.io.array.WriteFileMapping", "monai.transforms.io.dictionary.WriteFileMappingd"),
    *("monai.transforms.post.dictionary.SaveClassificationd", "monai.transforms.utils_create_transform_ims"),
    *("monai.data.video_dataset", "monai.data.torchscript_utils", "monai.data.dataset.CSVDataset"),
    *("monai.data.iterable_dataset.CSVIterableDataset", "monai.apps.deepgrow.dataset"),
    *("torch.nn.cpp", "torch.nn.attention", "torch.utils.data.datapipes", "torch.utils.data.graph"),
    *(f"ignite.handlers.{name}_logger" for name in ("clearml", "mlflow", "neptune", "polyaxon", "visdom", "wandb")),
    "ignite.metrics.gan",
)
# Single names, by module; "*" stands for every public name of a module that only computes.
SINGLE = {
    "monai": _words(""),
    "monai.utils": _words("set_determinism first CommonKeys"),
    "monai.utils.enums": _words("*"),
    "monai.networks": _words("one_hot"),
    "monai.networks.utils": _words("copy_model_state freeze_layers one_hot"),
    "monai.data": _words(
        """
        load_decathlon_datalist load_decathlon_properties partition_dataset select_cross_validation_folds
        list_data_collate pad_list_data_collate decollate_batch no_collation partition_dataset_classes
        worker_init_fn
        """
    ),
    "monai.data.utils": _words("no_collation"),
    "monai.handlers": _words("from_engine ignore_data stopping_fn_from_metric stopping_fn_from_loss"),
    "monai.engines": _words("default_prepare_batch default_metric_cmp_fn"),
    "torch": _words(
        """
        device tensor as_tensor zeros ones full eye arange linspace cat stack sigmoid softmax argmax sum mean max
        min abs where clamp exp log sqrt round ones_like zeros_like manual_seed Generator Tensor Size no_grad
        inference_mode float16 float32 float64 bfloat16 half float double int8 int16 int32 int64 uint8 int long bool
        set_float32_matmul_precision set_num_threads channels_last channels_last_3d autocast
        """
    ),
    "torch.amp": _words("GradScaler autocast"),
    "torch.cuda": _words(
        """
        is_available device_count current_device set_device empty_cache synchronize is_bf16_supported
        """
    ),
    "torch.cuda.amp": _words("GradScaler autocast"),
    "torch.backends.cudnn": _words("benchmark deterministic enabled"),
    "torch.distributed": _words(
        """
        is_initialized is_available get_rank get_world_size init_process_group destroy_process_group barrier
        """
    ),
    "torch.utils.data": _words("random_split default_collate"),
    "numpy": _words(
        """
        array asarray arange linspace zeros ones full prod sum mean median std max min abs clip concatenate stack
        unique where ceil floor round sqrt log exp inf nan pi float16 float32 float64 int8 int16 int32 int64 uint8
        uint16 bool_
        """
    ),
    "os": _words("environ sep cpu_count getcwd listdir"),
    "os.path": _words(
        """
        join exists isdir isfile dirname basename abspath normpath splitext relpath expanduser getmtime sep
        """
    ),
    "glob": _words("glob iglob"),
    "math": _words("*"),
    "itertools": _words("*"),
    "random": _words("seed random randint uniform choice shuffle sample"),
    "re": _words("sub match search findall split compile"),
    "datetime": _words("datetime date"),
}
# Parameters that look a name up, and switches: only these values. A callable with such a parameter is a component of
# its own, with literal values, and never part of an expression.
LOCATED: dict[str, tuple[Any, ...]] = {
    "reader": (
        *(f"{name}Reader" for name in ("ITK", "Nibabel", "Numpy", "Nrrd", "PIL", "Pydicom", "WSI")),
        *("cuCIM", "cucim", "OpenSlide", "openslide", "TiffFile", "tifffile"),
    ),
    "writer": ("ITKWriter", "NibabelWriter", "PILWriter"),
    "merger_cls": ("AvgMerger",),
}
SWITCHES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("pretrained", "use_pretrained", "download", "allow_pickle", "trust_code", "trust_repo"), (False,)),
    "weights_only": (True,),
    "pretrained_url": (None,),
    "compile_kwargs": (None,),
    "init_method": (None, "env://"),
}
# Parameters that name a file; its ending must be that of data, so that nothing written is ever run.
FILES = {
    "monai.handlers.checkpoint_saver.CheckpointSaver": ("final_filename", "key_metric_filename"),
    "monai.handlers.classification_saver.ClassificationSaver": ("filename",),
}
ENDINGS = (".csv", ".json", ".pt")
PARTICULAR: dict[str, dict[str, tuple[Any, ...]]] = {
    "monai.networks.nets.torchvision_fc.TorchVisionFCModel": {"weights": (None,)},
}

# Builtins that expressions may use.
BUILTINS = _words(
    """
    abs all any bool complex dict divmod enumerate filter float frozenset int isinstance len list map max min pow
    print range reversed round set slice sorted str sum tuple zip
    """
)

# Attributes of objects that exist only at run time: harmless on whatever the allowed names can make.
MEMBERS = _words(
    """
    acquire append argmax best_metric bool capitalize children clone contiguous copy count cpu cuda data dataset date
    detach device dim double dtype endswith epoch epoch_length eval expect extend flatten float from_iterable get
    get_rank half hashes index int isoformat item items iteration join keys load_state_dict long lower lstrip
    manual_seed max max_epochs mean metric_details metrics min modules name named_parameters ndim network now numpy
    optimizer param_groups parameters permute raise_if_faulty release replace requires_grad_ reshape rjust rstrip run
    set_epoch set_random_state shape sigmoid size softmax split squeeze startswith state state_dict step strftime strip
    sum title to today tolist train transform transforms transpose unsqueeze upper values view weights_at zfill
    """
)

# What `setattr` may set, to True or False.
SETTABLE = {"torch.backends.cudnn": ("benchmark", "deterministic", "enabled", "allow_tf32")}

"""The table of checkpoint layouts, and how each naming scheme maps to the names of torchvision.

To add a layout: (1) write a row with its name and the repository and file that write it, so that it can be checked;
(2) `marks` are keys that it always has, chosen so that no row above has all of them in the file: `mapping/key` with `*`
matching anything, a lone `*` as mapping standing for any one mapping of the file, and `@key` for a key at the file's
top; (3) `picks` say where its encoders are, the default one first; (4) `names` is the scheme of `NAMING_SCHEMES` that
the rest of a key follows; (5) add a literal key table to tests/benchmarks/encoders/keys, copied from the source. Rows
are tried in order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

# (pattern, replacement) pairs, applied in turn to a key without its prefix. A key that no pattern matches keeps its
# name, and counts as left over if the network has no tensor of this name.
Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]

NAMING_SCHEMES: dict[str, Rules] = {
    "torchvision": [],
    "vissl": [(r"^(base_model\.)?_feature_blocks\.", "")],
    "sequential": [
        (r"^0\.", "conv1."), (r"^1\.", "bn1."),
        (r"^4\.", "layer1."), (r"^5\.", "layer2."), (r"^6\.", "layer3."), (r"^7\.", "layer4."),
    ],
    "sequential without max-pool": [
        (r"^0\.", "conv1."), (r"^1\.", "bn1."),
        (r"^3\.", "layer1."), (r"^4\.", "layer2."), (r"^5\.", "layer3."), (r"^6\.", "layer4."),
    ],
    "detectron2": [
        (r"^stem\.", ""),
        (r"^res2\.", "layer1."), (r"^res3\.", "layer2."), (r"^res4\.", "layer3."), (r"^res5\.", "layer4."),
        (r"shortcut\.norm\.", "downsample.1."),
        (r"shortcut\.", "downsample.0."),
        (r"conv(\d)\.norm\.", r"bn\1."),
    ],
    "caffe2": [
        (r"^(res_)?conv1_bn_", "bn1."),
        (r"^conv1_", "conv1."),
        (r"^res2_(\d+)_", r"layer1.\1."), (r"^res3_(\d+)_", r"layer2.\1."),
        (r"^res4_(\d+)_", r"layer3.\1."), (r"^res5_(\d+)_", r"layer4.\1."),
        (r"branch1_bn_", "downsample.1."),
        (r"branch1_", "downsample.0."),
        (r"branch2a_bn_", "bn1."), (r"branch2b_bn_", "bn2."), (r"branch2c_bn_", "bn3."),
        (r"branch2a_", "conv1."), (r"branch2b_", "conv2."), (r"branch2c_", "conv3."),
        (r"\.(w|s|gamma)$", ".weight"),
        (r"\.(b|beta)$", ".bias"),
        (r"\.rm$", ".running_mean"),
        (r"\.riv$", ".running_var"),
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Pick:
    """Where one encoder of a checkpoint is.

    Attributes:
        mapping: path of the mapping that holds it; a `module.` in front of all of its keys is removed first.
        prefix: the start of its keys.
        head: prefix of its projection head: a linear layer, or a Sequential of linear layers and batch norms with
            ReLU at the indices that have no tensors. None where the head has another structure.
    """

    mapping: str
    prefix: str = ""
    head: str | None = None


@dataclass(frozen=True)
class CheckpointLayout:
    """A row of the table.

    Attributes:
        picks: by name, the default first; an encoder without a prefix where they are not given.
        ignore: patterns of keys below the prefix that do not belong to the backbone, such as a classifier's.
        epochs: the file's key with the number of finished epochs.
        required: fields of the card that the user must give where no release says them, because a wrong guess would
            spoil every result.
    """

    name: str
    source: str
    marks: tuple[str, ...]
    picks: Mapping[str, Pick] = field(default_factory=partial(dict, model=Pick("*")))
    names: str = "torchvision"
    ignore: tuple[str, ...] = ()
    epochs: str | None = None
    method: str | None = None
    required: tuple[str, ...] = ()


CLASSIFIER = ("fc.*", "head.*", "head_dist.*", "classifier.*")
_ANY_SCRIPT = "any training script or Lightning module with this attribute"
_LIGHTLY = "state_dict/projection_head.layers.*", "@pytorch-lightning_version"
_VISSL = "classy_state_dict/base_model/model/trunk"
_D2_REQUIRED = ("channels", "mean", "std", "value_range", "stride_in_1x1")

# lightly's evaluation reads `backbone`, which is the teacher in DINO and the online network in BYOL.
_LIGHTLY_PICKS = {
    "backbone": Pick("state_dict", "backbone.", "projection_head.layers."),
    "key_backbone": Pick("state_dict", "key_backbone.", "key_projection_head.layers."),
    "teacher_backbone": Pick("state_dict", "teacher_backbone.", "teacher_projection_head.layers."),
    "backbone_momentum": Pick("state_dict", "backbone_momentum.", "projection_head_momentum.layers."),
}

LAYOUTS = (
    CheckpointLayout(
        "encoder-bench run", "pretrain/train.py: resume.pt and epoch_*.pt",
        ("trainer/model/encoder_q.backbone.conv1.weight", "@recipe"),
        {
            "encoder_q": Pick("trainer/model", "encoder_q.backbone.", "encoder_q.head."),
            "encoder_k": Pick("trainer/model", "encoder_k.backbone.", "encoder_k.head."),
        },
        epochs="epochs",
    ),
    CheckpointLayout(
        "facebookresearch/moco-v3", "facebookresearch/moco-v3 c349e6e moco/builder.py, main_moco.py",
        ("state_dict/base_encoder.*", "state_dict/momentum_encoder.*", "@arch"),
        {
            "base_encoder": Pick("state_dict", "base_encoder.", "base_encoder.fc.|base_encoder.head."),
            "momentum_encoder": Pick("state_dict", "momentum_encoder.", "momentum_encoder.fc.|momentum_encoder.head."),
        },
        epochs="epoch", method="MoCo v3",
    ),
    CheckpointLayout(
        "facebookresearch/moco CIFAR notebook", "facebookresearch/moco f736491 colab/moco_cifar10_demo.ipynb",
        ("state_dict/encoder_q.net.0.weight", "state_dict/encoder_q.net.3.0.conv1.weight"),
        {
            "encoder_q": Pick("state_dict", "encoder_q.net.", "encoder_q.net.9."),
            "encoder_k": Pick("state_dict", "encoder_k.net.", "encoder_k.net.9."),
        },
        names="sequential without max-pool", epochs="epoch", method="MoCo",
    ),
    CheckpointLayout(
        # mmselfsup 0.x holds the query backbone twice; `backbone.` is what its own extraction tool reads.
        "mmselfsup 0.x", "open-mmlab/mmselfsup 6faad81 models/algorithms/moco.py, densecl.py",
        ("state_dict/backbone.conv1.weight", "state_dict/encoder_q.0.conv1.weight"),
        {
            "backbone": Pick("state_dict", "backbone.", "encoder_q.1.mlp."),
            "encoder_q": Pick("state_dict", "encoder_q.0.", "encoder_q.1.mlp."),
            "encoder_k": Pick("state_dict", "encoder_k.0.", "encoder_k.1.mlp."),
        },
    ),
    CheckpointLayout(
        "mmselfsup 0.x BYOL", "open-mmlab/mmselfsup 6faad81 models/algorithms/byol.py",
        ("state_dict/backbone.conv1.weight", "state_dict/online_net.0.conv1.weight"),
        {
            "backbone": Pick("state_dict", "backbone."),
            "online_net": Pick("state_dict", "online_net.0."),
            "target_net": Pick("state_dict", "target_net.0."),
        },
        method="BYOL",
    ),
    CheckpointLayout(
        "mmselfsup 0.x SimSiam", "open-mmlab/mmselfsup 6faad81 models/algorithms/simsiam.py",
        ("state_dict/backbone.conv1.weight", "state_dict/encoder.0.conv1.weight"),
        {"backbone": Pick("state_dict", "backbone."), "encoder": Pick("state_dict", "encoder.0.")},
        method="SimSiam",
    ),
    CheckpointLayout(
        # An mmengine averaged model wraps Sequential(backbone, neck) as `module`.
        "mmselfsup 1.x", "open-mmlab/mmselfsup 1.x models/algorithms/moco.py, densecl.py",
        ("state_dict/backbone.conv1.weight", "state_dict/encoder_k.module.0.conv1.weight"),
        {
            "backbone": Pick("state_dict", "backbone.", "neck.mlp."),
            "encoder_k": Pick("state_dict", "encoder_k.module.0.", "encoder_k.module.1.mlp."),
        },
    ),
    CheckpointLayout(
        "mmselfsup 1.x BYOL", "open-mmlab/mmselfsup 1.x models/algorithms/byol.py",
        ("state_dict/backbone.conv1.weight", "state_dict/target_net.module.0.conv1.weight"),
        {"backbone": Pick("state_dict", "backbone."), "target_net": Pick("state_dict", "target_net.module.0.")},
        method="BYOL",
    ),
    CheckpointLayout(
        "VISSL", "facebookresearch/vissl 09270ed models/trunks/resnext.py, extra_scripts/convert_vissl_to_torchvision",
        (f"{_VISSL}/*_feature_blocks.conv1.weight",),
        {"trunk": Pick(_VISSL)}, names="vissl",
    ),
    CheckpointLayout(
        "VISSL trunk", "facebookresearch/vissl 09270ed extra_scripts/convert_vissl_to_torchvision.py",
        ("*/*_feature_blocks.conv1.weight",),
        {"trunk": Pick("*")}, names="vissl",
    ),
    CheckpointLayout(
        "solo-learn", "vturrisi/solo-learn solo/methods/base.py",
        ("state_dict/backbone.*", "state_dict/classifier.weight"),
        {
            "backbone": Pick("state_dict", "backbone.", "projector."),
            "momentum_backbone": Pick("state_dict", "momentum_backbone.", "momentum_projector."),
        },
    ),
    CheckpointLayout(
        "solo-learn before 1.0.3", "vturrisi/solo-learn README: `encoder` became `backbone`",
        ("state_dict/encoder.*", "state_dict/classifier.weight"),
        {
            "encoder": Pick("state_dict", "encoder.", "projector."),
            "momentum_encoder": Pick("state_dict", "momentum_encoder.", "momentum_projector."),
        },
    ),
    CheckpointLayout(
        # Its heads have GELU, and a layer of unit norm behind an L2 norm.
        "lightly DINO", "lightly-ai/lightly e8d317f benchmarks/imagenet/resnet50/dino.py",
        ("state_dict/backbone.conv1.weight", "state_dict/student_backbone.conv1.weight",
         "state_dict/projection_head.last_layer.*", "@pytorch-lightning_version"),
        {
            "backbone": Pick("state_dict", "backbone."),
            "student_backbone": Pick("state_dict", "student_backbone."),
        },
    ),
    CheckpointLayout(
        "lightly", "lightly-ai/lightly e8d317f benchmarks/imagenet/resnet50/*.py, as Lightning saves them",
        ("state_dict/backbone.conv1.weight", *_LIGHTLY), _LIGHTLY_PICKS,
    ),
    CheckpointLayout(
        "lightly example", "lightly-ai/lightly e8d317f examples/pytorch_lightning/*.py: a Sequential of the children",
        ("state_dict/backbone.0.weight", "state_dict/backbone.4.0.conv1.weight", *_LIGHTLY), _LIGHTLY_PICKS,
        names="sequential",
    ),
    CheckpointLayout(
        # The example of DINO, whose backbone has no name without student or teacher.
        "lightly example with a teacher", "lightly-ai/lightly e8d317f examples/pytorch_lightning/dino.py",
        ("state_dict/teacher_backbone.0.weight", "state_dict/student_backbone.4.0.conv1.weight",
         "@pytorch-lightning_version"),
        {
            "teacher_backbone": Pick("state_dict", "teacher_backbone."),
            "student_backbone": Pick("state_dict", "student_backbone."),
        },
        names="sequential",
    ),
    CheckpointLayout(
        "lightly ViT", "lightly-ai/lightly e8d317f models/modules/masked_vision_transformer_timm.py",
        ("state_dict/backbone.mask_token", "state_dict/backbone.vit.patch_embed.proj.weight",
         "@pytorch-lightning_version"),
        {
            "backbone": Pick("state_dict", "backbone.vit."),
            "student_backbone": Pick("state_dict", "student_backbone.vit."),
        },
        ignore=CLASSIFIER,
    ),
    CheckpointLayout(
        "lightly ViT with a teacher", "lightly-ai/lightly e8d317f benchmarks/imagenet/vitb16/{ibot,dinov2,capi}.py",
        ("state_dict/teacher_backbone.mask_token", "state_dict/teacher_backbone.vit.patch_embed.proj.weight",
         "@pytorch-lightning_version"),
        {
            "teacher_backbone": Pick("state_dict", "teacher_backbone.vit."),
            "student_backbone": Pick("state_dict", "student_backbone.vit."),
        },
        ignore=CLASSIFIER,
    ),
    CheckpointLayout(
        "bytedance/ibot", "bytedance/ibot c24f870 main_ibot.py",
        ("teacher/backbone.*", "student/backbone.masked_embed"),
        {"teacher": Pick("teacher", "backbone."), "student": Pick("student", "backbone.")},
        epochs="epoch", method="iBOT",
    ),
    CheckpointLayout(
        "facebookresearch/dino", "facebookresearch/dino 7c446df main_dino.py, utils.py MultiCropWrapper",
        ("teacher/backbone.*", "student/backbone.*"),
        # Its evaluation reads the teacher.
        {"teacher": Pick("teacher", "backbone."), "student": Pick("student", "backbone.")},
        epochs="epoch",
    ),
    CheckpointLayout(
        "facebookresearch/ijepa", "facebookresearch/ijepa 52c1ae9 src/train.py, src/models/vision_transformer.py",
        ("target_encoder/patch_embed.proj.weight", "encoder/patch_embed.proj.weight"),
        {"target_encoder": Pick("target_encoder"), "encoder": Pick("encoder")},
        epochs="epoch", method="I-JEPA",
    ),
    CheckpointLayout(
        "NVlabs/RADIO", "NVlabs/RADIO c0f3701 hubconf.py: the moving average where the file has one",
        ("state_dict_ema/base_model.*patch_generator.embedder.weight",),
        {"state_dict_ema": Pick("state_dict_ema", "base_model.")},
    ),
    CheckpointLayout(
        "facebookresearch/capi", "facebookresearch/capi 98b4fa1 model.py: __model_loader__",
        ("*/backbone.registers", "*/backbone.encoder.blocks.0.residual1.fn.q_proj.weight"),
        {"backbone": Pick("*", "backbone.")},
        ignore=("mask_token", "decoder.*"), method="CAPI",
    ),
    CheckpointLayout(
        "CAPI", "facebookresearch/capi 98b4fa1 model.py: EncoderDecoder",
        ("*/registers", "*/encoder.blocks.0.residual1.fn.q_proj.weight"),
        ignore=("mask_token", "decoder.*"), method="CAPI",
    ),
    CheckpointLayout(
        "Barlow Twins or VICReg", "facebookresearch/barlowtwins 8e8d284 main.py; vicreg 4e12602 main_vicreg.py",
        ("model/backbone.conv1.weight", "model/projector.0.weight"),
        {"backbone": Pick("model", "backbone.", "projector.")},
        epochs="epoch",
    ),
    CheckpointLayout(
        "facebookresearch/simsiam", "facebookresearch/simsiam a7bc177 simsiam/builder.py, main_simsiam.py",
        ("state_dict/encoder.conv1.weight", "state_dict/predictor.0.weight"),
        {"encoder": Pick("state_dict", "encoder.", "encoder.fc.")},
        epochs="epoch", method="SimSiam",
    ),
    CheckpointLayout(
        "facebookresearch/moco", "facebookresearch/moco 7397dfe moco/builder.py, main_moco.py, main_lincls.py",
        ("*/encoder_q.conv1.weight",),  # the end-to-end variant has no queue
        {
            "encoder_q": Pick("*", "encoder_q.", "encoder_q.fc."),
            "encoder_k": Pick("*", "encoder_k.", "encoder_k.fc."),
        },
        epochs="epoch",
    ),
    CheckpointLayout(
        "facebookresearch/swav", "facebookresearch/swav 06b1b7c src/resnet50.py, main_swav.py",
        ("*/conv1.weight", "*/projection_head.*"),
        {"model": Pick("*", "", "projection_head.")},
        ignore=("prototypes.*",), epochs="epoch",
    ),
    CheckpointLayout(
        "detectron2", "facebookresearch/detectron2 02b5c4e tools/convert-torchvision-to-d2.py",
        ("*/stem.conv1.weight", "*/res2.0.conv1.weight"),
        names="detectron2", ignore=("stem.fc.*", "linear.*"), required=_D2_REQUIRED,
    ),
    CheckpointLayout(
        "detectron2 detector", "facebookresearch/detectron2 02b5c4e modeling/backbone/fpn.py",
        ("*/backbone.bottom_up.stem.conv1.weight",),
        {"backbone": Pick("*", "backbone.bottom_up.")},
        names="detectron2", required=_D2_REQUIRED,
    ),
    CheckpointLayout(
        # The names of Caffe2's Detectron, as MSRA's ResNets are stored. Either the statistics are folded into the
        # scale and bias, or they are there; convolutions' biases are zeros.
        "Caffe2", "facebookresearch/detectron2 02b5c4e checkpoint/c2_model_loading.py",
        ("*/conv1_w", "*/res2_0_branch2a_w"),
        {"blobs": Pick("*")},
        names="caffe2", ignore=("fc1000_*", "pred_*", "*_momentum", "lr", "weight_order"), required=_D2_REQUIRED,
    ),
    CheckpointLayout(
        "sthalles/SimCLR", "sthalles/SimCLR models/resnet_simclr.py: the head replaces the backbone's fc",
        ("state_dict/backbone.conv1.weight", "state_dict/backbone.fc.*"),
        {"backbone": Pick("state_dict", "backbone.", "backbone.fc.")},
        method="SimCLR",
    ),
    CheckpointLayout(
        "lucidrains/byol-pytorch", "lucidrains/byol-pytorch byol_pytorch.py: NetWrapper.net",
        ("*/online_encoder.net.conv1.weight", "*/target_encoder.net.conv1.weight"),
        {"online": Pick("*", "online_encoder.net."), "target": Pick("*", "target_encoder.net.")},
        ignore=("fc.*",), method="BYOL",
    ),
    CheckpointLayout(
        # A Sequential of a torchvision ResNet's children, as many Lightning modules build it.
        "Sequential backbone", "lightly-ai/lightly examples: nn.Sequential(*list(resnet.children())[:-1])",
        ("*/backbone.0.weight", "*/backbone.4.0.conv1.weight"),
        {"backbone": Pick("*", "backbone.", "projection_head.layers.")}, names="sequential",
    ),
    CheckpointLayout(
        "Sequential", "lightly-ai/lightly examples: nn.Sequential(*list(resnet.children())[:-1])",
        ("*/0.weight", "*/4.0.conv1.weight"),
        {"backbone": Pick("*")}, names="sequential", ignore=("9.*",),
    ),
    CheckpointLayout(
        "OpenMMLab", "open-mmlab/mmselfsup models/algorithms/base.py; mmpretrain, mmdet, mmseg alike",
        ("state_dict/backbone.conv1.weight", "@meta"),
        {"backbone": Pick("state_dict", "backbone.", "neck.mlp.")},
    ),
    CheckpointLayout(
        "Lightning", "Lightning-AI/pytorch-lightning: `pytorch-lightning_version` next to `state_dict`",
        ("state_dict/backbone.*", "@pytorch-lightning_version"),
        {"backbone": Pick("state_dict", "backbone.", "projector.")},
        ignore=CLASSIFIER,
    ),
    CheckpointLayout(
        "backbone.*", _ANY_SCRIPT, ("*/backbone.conv1.weight", "*/backbone.layer1.*"),
        {"backbone": Pick("*", "backbone.")}, ignore=CLASSIFIER,
    ),
    CheckpointLayout(
        "encoder.*", _ANY_SCRIPT, ("*/encoder.conv1.weight", "*/encoder.layer1.*"),
        {"encoder": Pick("*", "encoder.")}, ignore=CLASSIFIER,
    ),
    CheckpointLayout(
        "model.*", _ANY_SCRIPT, ("*/model.conv1.weight", "*/model.layer1.*"),
        {"model": Pick("*", "model.")}, ignore=CLASSIFIER,
    ),
    CheckpointLayout(
        "net.*", _ANY_SCRIPT, ("*/net.conv1.weight", "*/net.layer1.*"),
        {"net": Pick("*", "net.")}, ignore=CLASSIFIER,
    ),
    CheckpointLayout(
        "network.*", _ANY_SCRIPT, ("*/network.conv1.weight", "*/network.layer1.*"),
        {"network": Pick("*", "network.")}, ignore=CLASSIFIER,
    ),
    CheckpointLayout(
        "resnet.*", _ANY_SCRIPT, ("*/resnet.conv1.weight", "*/resnet.layer1.*"),
        {"resnet": Pick("*", "resnet.")}, ignore=CLASSIFIER,
    ),
    CheckpointLayout(
        "extracted OpenMMLab backbone", "open-mmlab/mmselfsup 6faad81 tools/model_converters/extract_backbone_weights",
        ("state_dict/conv1.weight", "state_dict/layer1.*", "@author"),
        {"backbone": Pick("state_dict")},
    ),
    CheckpointLayout(
        "torchvision names", "torchvision models/resnet.py; timm's ResNets, the releases of Barlow Twins, VICReg, DINO",
        ("*/conv1.weight", "*/layer1.0.conv1.weight"),
        ignore=("fc.*",),
    ),
    CheckpointLayout(
        "DINOv3", "facebookresearch/dinov3 models/vision_transformer.py",
        ("*/storage_tokens", "*/rope_embed.periods", "*/blocks.0.norm1.weight"),
        method="DINOv3",
    ),
    CheckpointLayout(
        "DINOv2", "facebookresearch/dinov2 models/vision_transformer.py",
        ("*/cls_token", "*/blocks.0.norm1.weight", "*/mask_token", "*/blocks.0.ls1.gamma"),
        ignore=("mask_token",), method="DINOv2",
    ),
    CheckpointLayout(
        "ViT of timm's names", "timm models/vision_transformer.py; facebookresearch/dino vision_transformer.py, mae",
        ("*/patch_embed.proj.weight", "*/blocks.0.norm1.weight"),
        ignore=(*CLASSIFIER, "mask_token", "decoder_*"),
    ),
)  # fmt: skip

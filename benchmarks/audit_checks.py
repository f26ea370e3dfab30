"""What an audit tries and checks of an encoder.

`variations` are other cards, `alternatives` other readings of a vision transformer's weights (numbers of heads, tokens
of the embedding, activation); the audit scores both as it scores the encoder itself. `structure` looks at the weights
of a vision transformer and at a few passes: parts that were never loaded, missing norms, outputs that change from pass
to pass, a patch map that is shifted by class or register tokens, positions that are wrong at other sizes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.forms import pixels_of
from benchmarks.encoders.timm_models import timm_plan
from benchmarks.encoders.vit_families import family_of_card
from results.errors import is_out_of_memory
from results.schema import EncoderCard, Triple

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
CAFFE_MEAN: Triple = (103.53, 116.28, 123.675)  # BGR, of the Caffe networks of detectron2 and OpenMMLab
NEVER_LOADED = 1e-5  # standard deviation of a token: timm starts tokens at 1e-6
HEADS = (3, 4, 6, 8, 12, 16)  # of the usual sizes
PERTURBED = ((0.3, 0.3), (0.3, 0.7), (0.5, 0.5), (0.7, 0.3), (0.7, 0.7))  # places in the map, as shares of its sides
MAX_SHIFT = 8  # tokens: a class token and some registers
SHIFT_GAIN = 0.05  # in correlation: shifted positions must fit clearly better
MIN_CORRELATION = 0.5  # of positions at the file's grid and at twice that: over 0.9 even where they are white noise

_SCALES = ("ls1.gamma", "ls2.gamma", "gamma_1", "gamma_2", "lambda1", "lambda_1", "lambda_2")
_TOKENS = (
    "cls_token",
    "reg_token",
    "register_tokens",
    "storage_tokens",
    "class_embedding",
    "registers",
    "relative_position_bias_table",
)
_WITHOUT_FINAL_NORM = ("_radio_", "_pe_spatial_", "_pe_lang_")  # parts of timm's names of these networks
MAX_GRID = 40  # patches per side at which positions are compared; RADIO has positions for 128


@dataclass(frozen=True)
class Variation:
    """Another reading of the same weights: another card, or the encoder's own with a change of the network.

    Attributes:
        name: what differs.
        words: completes "scores 2.0 points higher …".
        conclusion: what a higher score means.
        within: changes the module inside a context, and changes it back.
        output: the output that is scored; the embedding where None.
    """

    name: str
    words: str
    card: EncoderCard
    conclusion: str = "the card is probably wrong"
    within: Callable[[nn.Module], AbstractContextManager[None]] | None = None
    output: str | None = None


# ---- other cards -----------------------------------------------------------------------------------------------------


def variations(card: EncoderCard, *, with_batch_norms: bool) -> list[Variation]:
    """The usual ways to feed pixels to networks, except the card's own, each once."""

    def in_order(rgb: Triple) -> Triple:
        return rgb if card.channels == "RGB" else _reversed(rgb)

    def with_(name: str, words: str, **fields: object) -> Variation:
        return Variation(name, words, card.model_copy(update=fields))

    zeros, ones = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    scale = card.value_range
    mean, std = in_order(IMAGENET_MEAN), in_order(IMAGENET_STD)
    other, other_range = ("BGR" if card.channels == "RGB" else "RGB"), (1.0 if scale == 255 else 255.0)
    candidates = [
        with_("channels", f"as {other}", channels=other, mean=_reversed(card.mean), std=_reversed(card.std)),
        with_("mean", "without its mean subtracted", mean=zeros)
        if any(card.mean)
        else with_("mean", "with ImageNet's mean subtracted", mean=_times(mean, scale)),
        with_("std", "without its division by std", std=ones)
        if card.std != ones
        else with_("std", "divided by ImageNet's std", std=_times(std, scale)),
        with_("range", f"on pixels of 0 to {other_range:g}, mean and std as they are", value_range=other_range),
        with_("ImageNet", "with ImageNet's mean and std", value_range=1.0, mean=mean, std=std),
        with_("-1 to 1", "on pixels of -1 to 1", value_range=1.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        with_("0 to 1", "on pixels of 0 to 1 without normalisation", value_range=1.0, mean=zeros, std=ones),
        with_("0 to 255", "on pixels of 0 to 255 without normalisation", value_range=255.0, mean=zeros, std=ones),
        with_("Caffe", "as Caffe's networks (BGR of 0 to 255, mean subtracted)",
              channels="BGR", value_range=255.0, mean=CAFFE_MEAN, std=ones),
    ]  # fmt: skip
    seen = [_network_input(card)]
    found: list[Variation] = []
    for variation in candidates:
        if _network_input(variation.card) not in seen:
            seen.append(_network_input(variation.card))
            found.append(variation)
    if with_batch_norms:
        conclusion = "the running statistics in the file do not fit these images, or are damaged"
        words = "with the batch norms on batch statistics"
        found.append(Variation("batch statistics", words, card, conclusion, using_batch_statistics))
    return found


def _network_input(card: EncoderCard) -> tuple[object, ...]:
    """The channel order, and the input values of black and white."""
    black = tuple(round(-m / s, 4) for m, s in zip(card.mean, card.std, strict=True))
    white = tuple(round((card.value_range - m) / s, 4) for m, s in zip(card.mean, card.std, strict=True))
    return card.channels, black, white


def _reversed(values: Triple) -> Triple:
    return values[2], values[1], values[0]


def _times(values: Triple, factor: float) -> Triple:
    return values[0] * factor, values[1] * factor, values[2] * factor


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """The batch norms with running statistics."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


@contextmanager
def using_batch_statistics(module: nn.Module) -> Iterator[None]:
    """Remove the running statistics for a while: in eval mode a norm without them uses those of the batch."""
    norms = batch_norms(module)
    kept = [(norm.running_mean, norm.running_var) for norm in norms]
    try:
        for norm in norms:
            norm.running_mean = norm.running_var = None
        yield
    finally:
        for norm, (mean, var) in zip(norms, kept, strict=True):
            norm.running_mean, norm.running_var = mean, var


# ---- other readings of the same weights ------------------------------------------------------------------------------


def alternatives(encoder: Encoder) -> list[Variation]:
    """Other numbers of heads, the other tokens as the embedding, CLIP's other activation, DINOv3's other pixels."""
    found: list[Variation] = []
    card, network = encoder.card, _network(encoder)
    if network is not None and getattr(network, "rope", None) is None:  # rotary positions depend on the heads
        width, own = _heads(network)
        for heads in HEADS if own else ():
            if heads != own and width % heads == 0:
                words, conclusion = f"with {heads} heads instead of {own}", "the number of heads is probably wrong"
                within = partial(with_heads, heads=heads)
                found.append(Variation(f"{heads} heads", words, card, conclusion, within))
    if encoder.has("cls") and encoder.has("patch_mean"):
        of_class = card.embed.startswith("class token") and "mean" not in card.embed
        other = "patch_mean" if of_class else "cls"
        fact, tokens = ("mean", "the mean of its patch tokens") if of_class else ("cls", "its class token")
        conclusion = f"the embedding is probably not the authors'; try --facts embed={fact}"
        found.append(Variation(f"embed {fact}", f"by {tokens}", card, conclusion, output=other))
    kinds = _activations(network) if network is not None else set()
    if network is not None and kinds and not isinstance(getattr(network, "norm_pre", nn.Identity()), nn.Identity):
        quick = "QuickGELU" in kinds
        words = "with the exact GELU" if quick else "with CLIP's QuickGELU"
        conclusion = f"the activation is probably wrong; try --facts activation={'gelu' if quick else 'quick_gelu'}"
        found.append(Variation("activation", words, card, conclusion, partial(with_activation, quick=not quick)))
    satellite = {name: pixels_of("sat-493m").values[name] for name in ("mean", "std")}
    if "_dinov3" in card.architecture.name and card.mean != satellite["mean"]:
        facts = " ".join(f"{name}={','.join(f'{v:g}' for v in values)}" for name, values in satellite.items())
        words = "with the mean and std of DINOv3's satellite models"
        conclusion = f"it is probably a satellite model (SAT-493M); try --facts {facts}"
        found.append(Variation("SAT-493M", words, card.model_copy(update=satellite), conclusion))
    return found


def _network(encoder: Encoder) -> Any:
    """The module with `blocks` and `patch_embed`, as timm's, DINO's and DINOv2's have; None where there is none."""
    module = encoder.backbone
    return module if hasattr(module, "blocks") and hasattr(module, "patch_embed") else None


def _heads(network: Any) -> tuple[int, int]:
    """Width of the tokens and number of heads; 0 where the attention is not one with `num_heads` and `head_dim`."""
    attentions = [getattr(block, "attn", None) for block in network.blocks]
    if not all(hasattr(attention, "num_heads") and hasattr(attention, "head_dim") for attention in attentions):
        return 0, 0
    first: Any = attentions[0]
    return first.num_heads * first.head_dim, first.num_heads


@contextmanager
def with_heads(module: nn.Module, heads: int) -> Iterator[None]:
    """Another number of heads in every attention that has `num_heads`, for a while."""
    kept: list[tuple[Any, int, int, float]] = []
    attentions: list[Any] = [m for m in module.modules() if hasattr(m, "num_heads") and hasattr(m, "head_dim")]
    try:
        for attention in attentions:
            kept.append((attention, attention.num_heads, attention.head_dim, attention.scale))
            width = attention.num_heads * attention.head_dim
            attention.num_heads, attention.head_dim = heads, width // heads
            attention.scale = (width // heads) ** -0.5
        yield
    finally:
        for attention, number, size, scale in kept:
            attention.num_heads, attention.head_dim, attention.scale = number, size, scale


class _QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def _activations(network: Any) -> set[str]:
    names = {type(getattr(getattr(block, "mlp", None), "act", None)).__name__ for block in network.blocks}
    return names if names <= {"GELU", "QuickGELU"} else set()


@contextmanager
def with_activation(module: nn.Module, quick: bool) -> Iterator[None]:
    """QuickGELU or the exact GELU as the activation of every MLP, for a while."""
    mlps: list[Any] = [m for m in module.modules() if type(getattr(m, "act", None)).__name__ in ("GELU", "QuickGELU")]
    kept = [(mlp, mlp.act) for mlp in mlps]
    try:
        for mlp in mlps:
            mlp.act = _QuickGELU() if quick else nn.GELU()
        yield
    finally:
        for mlp, activation in kept:
            mlp.act = activation


# ---- the structure ---------------------------------------------------------------------------------------------------


def structure(encoder: Encoder, images: Tensor) -> tuple[str, ...]:
    """Faults in sentences, from the weights and a few passes; none of what is no vision transformer.

    Args:
        images: (N, 3, size, size) uint8; the first four are used.
    """
    if _network(encoder) is None and not encoder.has("patches"):
        return ()
    found = [*_unlike_family(encoder), *_never_loaded(encoder), *_missing_norms(encoder)]
    batch = encoder.normalise(images[:4])
    name = "patches" if encoder.has("patches") else "embed"
    first, second = (encoder.outputs(batch, [name])[name] for _ in range(2))
    if not torch.equal(first, second):
        found.append(f"{name} changes from pass to pass: random masking or dropout is active")
        return tuple(found)  # the next checks compare passes
    if encoder.has("patches"):
        shift = map_shift(encoder, batch)
        if shift:
            found.append(
                f"the map of patches is shifted by {shift} places: class or register tokens are probably counted as "
                "patches"
            )
    return (*found, *_wrong_positions(encoder))


def _unlike_family(encoder: Encoder) -> Iterator[str]:
    """Where the encoder is read in another way than its family's own code reads its models."""
    card, network = encoder.card, _network(encoder)
    family = family_of_card(card)
    if family is None or network is None:
        return
    own, architecture = f"in the authors' code ({family.title})", card.architecture
    of_timm = timm_plan(architecture.name.removeprefix("timm:").partition("-")[0])
    width, heads = _heads(network)
    usual = (family.heads or {}).get(width) or (of_timm.blocks[0].attn.num_heads if of_timm.embed_dim == width else 0)
    if heads and usual and heads != usual:
        yield f"it has {heads} heads, and {usual} {own}: the number of heads is probably wrong"
    eps, of_family = (net.blocks[0].norm1.eps for net in (network, of_timm))
    if eps != of_family:
        yield f"the epsilon of its norms is {eps:g}, and {of_family:g} {own}; outputs differ slightly"
    if family.name == "dinov3":  # its files decide on positions, and web and satellite models differ in the pixels
        known: dict[str, Any] = {}
    else:
        known = dict(pixels_of(family.pixels).values) if family.pixels else {}
        if architecture.positions != family.positions:
            yield f"positions at other image sizes are not interpolated as {own}; omit --facts positions="
    if any(getattr(card, name) != value for name, value in known.items()):
        yield (
            f"mean, std, range or channels are not those of {family.title} (mean {known['mean']}, std {known['std']}): "
            "keep them only if the model's authors state them"
        )
    pooled = getattr(network, "global_pool", None)
    embed = architecture.pooling or {"token": "cls", "avg": "mean"}.get(str(pooled), pooled)
    of_mean = isinstance(getattr(network, "fc_norm", None), nn.LayerNorm)
    if family.embed and not of_mean and embed not in (family.embed, *family.embed_too):
        yield f"embed is {embed}, and its authors evaluate {family.embed}"


def _never_loaded(encoder: Encoder) -> Iterator[str]:
    named = dict(encoder.module.named_parameters())
    scales = [value for name, value in named.items() if name.endswith(_SCALES)]
    if scales and all(bool((value == scales[0].flatten()[0]).all()) for value in scales):
        yield f"LayerScale is {float(scales[0].flatten()[0]):g} in every block: its weights were probably not loaded"
    for name, value in named.items():
        if name.split(".")[-1] in _TOKENS and value.numel() > 1 and float(value.float().std()) < NEVER_LOADED:
            yield f"{name} is nearly constant: it was probably not loaded"


def _missing_norms(encoder: Encoder) -> Iterator[str]:
    network = _network(encoder)
    convolution = getattr(network and network.patch_embed, "proj", None)
    if network is None or convolution is None:
        return
    before, after, pooled = (getattr(network, name, None) for name in ("norm_pre", "norm", "fc_norm"))
    if getattr(convolution, "bias", None) is None and (before is None or isinstance(before, nn.Identity)):
        yield "patches have no bias and no norm before the blocks, as CLIP's have: its ln_pre is probably missing"
    has_none = any(part in encoder.card.architecture.name for part in _WITHOUT_FINAL_NORM)
    if not has_none and isinstance(after, nn.Identity) and (pooled is None or isinstance(pooled, nn.Identity)):
        yield "there is no norm after the last block: the final norm is probably missing"
    if isinstance(after, nn.Identity) and isinstance(pooled, nn.LayerNorm) and encoder.card.architecture.pooling:
        yield (
            f"embed is the {encoder.card.embed}: the file's only norm after the blocks, fc_norm, is for the mean of "
            "the patch tokens, as in MAE's fine-tuned networks; omit --facts embed="
        )


def map_shift(encoder: Encoder, batch: Tensor) -> int:
    """By how many places, row by row, the map of patches lags behind the image; 0 where it does not, or is unclear.

    A token depends most on its own patch. Where another patch of the image changes, that is the place that moves.
    """
    before = encoder.outputs(batch, ["patches"])["patches"].float()
    rows, columns = before.shape[2:]
    height, width = batch.shape[2] // rows, batch.shape[3] // columns
    shifts: list[int] = []
    for down, right in PERTURBED:
        row, column = int(down * rows), int(right * columns)
        changed = batch.clone()
        part = changed[:, :, row * height : (row + 1) * height, column * width : (column + 1) * width]
        part.copy_(-part + part.mean((2, 3), keepdim=True).flip(0))
        moved = (encoder.outputs(changed, ["patches"])["patches"].float() - before).norm(dim=1).mean(0)
        shifts.append(int(moved.argmax()) - (row * columns + column))
    shift, votes = Counter(shifts).most_common(1)[0]
    return shift if votes > len(PERTURBED) // 2 else 0


def _wrong_positions(encoder: Encoder) -> Iterator[str]:
    """Compares positions at twice the file's image size, averaged in pairs, with those at the file's size."""
    network = _network(encoder)
    grid = getattr(network and network.patch_embed, "grid_size", None)
    side = encoder.card.patch_size
    if network is None or encoder.card.input_size or not side or not isinstance(grid, tuple) or grid[0] != grid[1]:
        return
    places = grid[0] if grid[0] <= MAX_GRID else MAX_GRID // 2
    own, twice = (_positions(encoder, network, places * factor, side) for factor in (1, 2))
    if own is None or twice is None:
        return
    halved = nn.functional.avg_pool2d(twice, 2)
    plain = _correlation(own, halved)
    flat = halved.flatten(2)
    shifted = {s: _correlation(own, flat.roll(s, 2).view_as(halved)) for s in range(-MAX_SHIFT, MAX_SHIFT + 1) if s}
    shift = max(shifted, key=lambda s: shifted[s])
    needed = max(plain + SHIFT_GAIN, MIN_CORRELATION)  # another order of unrelated positions fits them by luck only
    if shifted[shift] > needed:
        yield (
            f"positions at other image sizes are shifted by {abs(shift)} places: their interpolation probably takes a "
            "patch for a class token or the other way round"
        )
    elif _correlation(own, halved.mT) > needed:
        yield "positions at other image sizes have rows and columns exchanged"
    elif plain < MIN_CORRELATION:
        yield (
            "positions at twice the image size have little in common with those of the file (correlation "
            f"{plain:.2f}): their interpolation is probably wrong"
        )


def _positions(encoder: Encoder, network: Any, grid: int, side: int) -> Tensor | None:
    """(1, D, grid, grid) what the patch tokens of a uniform image are before the first block, without their mean.

    None where they are all equal (no positions before the blocks), or the encoder does not take the size.
    """
    seen: list[Tensor] = []
    hook = network.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.zeros(1, 3, grid * side, grid * side, device=encoder.device, dtype=encoder.dtype)
    try:
        encoder.outputs(images, ["embed"])
    except (AssertionError, RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        return None
    finally:
        hook.remove()
    if not seen or seen[0].ndim != 3 or seen[0].shape[1] < grid * grid:
        return None
    tokens = seen[0][0, -grid * grid :].float()
    maps = (tokens - tokens.mean(0)).T.unflatten(1, (grid, grid))[None]
    return maps if float(maps.abs().max()) > 1e-6 * float(tokens.abs().max()) else None


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean((2, 3), keepdim=True), b - b.mean((2, 3), keepdim=True)
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12))

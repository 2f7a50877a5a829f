"""The published ways to measure, one record each. `python -m evaluations.protocols` prints them.

A record says what the released code of each group does, as far as it was read there. Only where `verified` is true were
results compared with those of that code; `reason` says how, or why not.
"""

from __future__ import annotations

from dataclasses import replace

from engine.messages import UserError
from evaluations.image_sets import AS_STORED, CENTER_CROP, ROUNDING
from evaluations.metrics.dinov2 import DINOv2Extractor, EDM2Extractor
from evaluations.metrics.inception import InceptionExtractor
from evaluations.metrics.inception_resizes import AntialiasedInception, PillowInception
from evaluations.protocols.ibq import IBQProtocol
from evaluations.protocols.preset import Measured, Preset
from evaluations.protocols.wetok import WeTokProtocol

# How floats become 8 bits.
ADM_ROUNDING = "uint8(clamp(127.5 (x + 1)))"
TRUNCATED_255 = "uint8(255 (x + 1) / 2)"
ROUNDED = "rounded to the nearest"

# Why a record is not verified, or why it is unavailable.
ONLY_READ = "read in the released code; never compared with its results"
ADM_TEST = "tests/parity/test_adm.py: the evaluator, against TensorFlow's results on seeded weights"

TF_RESIZE = InceptionExtractor.input_resize
TORCH_RESIZE = WeTokProtocol.resize_name

ADM = Preset(
    name="adm",
    title="guided-diffusion (ADM): gFID",
    measured="generation",
    crop=CENTER_CROP,
    image_size=256,
    rounding=ADM_ROUNDING,
    label_rule="random",
    count=50_000,
    extractor="inception",
    resize=TF_RESIZE,
    reference_kind="train",
    reference="mu and sigma of all training images; precision and recall: 10,000 of them",
    k=3,
    comparison="<=",
    note="Inception Score: mean over chunks of 5,000 samples in the order of the file",
    verified=True,
    reason=ADM_TEST,
)
GIGATOK = replace(
    ADM,
    name="gigatok",
    title="LlamaGen, GigaTok: gFID",
    rounding=ROUNDING,
    note="samples of 384 px are resized to 256 (bicubic, not antialiased); seed: global seed x ranks + rank",
)
GIGATOK_RECONSTRUCTION = replace(
    GIGATOK,
    title="LlamaGen, GigaTok: rFID",
    measured="reconstruction",
    label_rule=None,
    reference_kind="val",
    reference="the 50,000 validation images, cropped, in an npz file",
    rules="adm",
    note="SSIM is taken with a data range of 2 on images in [0,1] (`ssim_range2`)",
)
WETOK = Preset(
    name="wetok",
    title="WeTok, Open-MAGVIT2: rFID",
    measured="reconstruction",
    crop=WeTokProtocol.crop_name,
    image_size=None,
    rounding=WeTokProtocol.rounding,
    label_rule=None,
    count=50_000,
    extractor="inception",
    resize=TORCH_RESIZE,
    reference_kind="val",
    reference="the same images",
    k=None,
    comparison=None,
    rules="wetok",
    note="images for the distance are not rounded; there PSNR and SSIM are means over batches, here over images",
    reason="PSNR, SSIM, padding and the distance equal stored results of the released code; its Inception was read",
)
IBQ = replace(
    WETOK,
    name="ibq",
    title="IBQ: rFID",
    crop=IBQProtocol.crop_name,
    rules=IBQProtocol.name,
    reason=f"{ONLY_READ}; OpenCV's fixed point may give other pixels by one level",
)
VAR = replace(
    ADM,
    name="var",
    title="VAR, RAR: gFID",
    rounding=None,
    label_rule="balanced",
    note="50 samples of each class",
    verified=False,
    reason=ONLY_READ,
)
MAR = replace(
    VAR,
    name="mar",
    title="MAR: gFID",
    rounding=ROUNDED,
    reference="mu and sigma of MAR's own file, of the training images",
)
RAE = replace(VAR, name="rae", title="RAE: gFID", note="50 samples of each class: about 0.1 lower than random classes")
RAE_RECONSTRUCTION = replace(
    GIGATOK_RECONSTRUCTION,
    name="rae",
    title="RAE: rFID",
    rounding=None,
    k=None,
    comparison=None,
    note="through torch-fidelity",
    verified=False,
    reason=ONLY_READ,
)
TITOK = replace(
    RAE_RECONSTRUCTION,
    name="titok",
    title="TiTok and other 1D tokenizers: rFID",
    crop=None,
    rounding=TRUNCATED_255,
    reference="the validation images of its own loader",
    note="through torch-fidelity; the crop is that of its loader, which was not read",
    rules=None,
)
TORCH_FIDELITY = Preset(
    name="torch_fidelity",
    title="torch-fidelity",
    measured="any",
    crop=AS_STORED,
    image_size=None,
    rounding=None,
    label_rule=None,
    count=None,
    extractor="inception",
    resize=TF_RESIZE,
    reference_kind=None,
    reference="images of the user's choice",
    k=3,
    comparison="<=",
    note="its Inception Score is of 10 parts of the shuffled files (seed 2020); here over chunks of 5,000",
    reason="its network is the one that is used here; its own FID of files was not compared",
)
PYTORCH_FID = replace(
    TORCH_FIDELITY,
    name="pytorch_fid",
    title="pytorch-fid",
    extractor="inception_torch",
    resize=TORCH_RESIZE,
    k=None,
    comparison=None,
    note="one level of the folder",
    reason=ONLY_READ,
)
CLEAN_FID = replace(
    PYTORCH_FID,
    name="clean_fid",
    title="clean-fid",
    extractor="inception_pillow",
    resize=PillowInception.input_resize,
    reference="its own files of statistics, or images",
    note="its files of statistics are not read here",
)
TORCHMETRICS = replace(
    PYTORCH_FID,
    name="torchmetrics",
    title="torchmetrics since 2025",
    rounding="[0,1]: uint8(255 x)",
    extractor="inception_antialias",
    resize=AntialiasedInception.input_resize,
    note="without antialias before 2025: the number changed with the version",
)
EDM2 = replace(
    ADM,
    name="edm2",
    title="EDM2: FD-DINOv2 at 512 px",
    image_size=512,
    rounding=ROUNDING,
    extractor="dinov2_l_edm2",
    resize=EDM2Extractor.input_resize,
    reference="all training images at the size of the model",
    k=None,
    comparison=None,
    repeats=3,
    note="the smallest of three runs is reported (so for EDM; not read for EDM2); samples of its VAE: 255 x, truncated",
    verified=False,
    reason=ONLY_READ,
)
GPIC = replace(
    EDM2,
    name="gpic",
    title="GPIC: FD-DINOv2",
    crop=None,
    image_size=None,
    rounding=None,
    label_rule=None,
    extractor="dinov2_l",
    resize=DINOv2Extractor.input_resize,
    reference_kind="test",
    reference="its test split, 50,000 captions, one image each, in its npz file",
    k=5,
    comparison="<",
    repeats=1,
    note="precision, recall, density and coverage over at most 10,000 random images of each set; no guidance",
    reason="read in a port of its toolkit, which was not at hand itself; nor was its reference file",
)

PRESETS: tuple[Preset, ...] = (
    ADM, GIGATOK, GIGATOK_RECONSTRUCTION, replace(GIGATOK_RECONSTRUCTION, name="adm"), WETOK, IBQ, VAR, MAR, RAE,
    RAE_RECONSTRUCTION, TITOK, TORCH_FIDELITY, PYTORCH_FID, CLEAN_FID, TORCHMETRICS, EDM2, GPIC,
)  # fmt: skip


def presets_for(measured: Measured | None = None) -> dict[str, Preset]:
    """{name: preset} of those for a `generation` or `reconstruction`, or for files, which may be either.

    Of a name that stands for both, files get the one of the generation.
    """
    fitting = [preset for preset in PRESETS if measured is None or preset.measured in (measured, "any")]
    return {preset.name: preset for preset in reversed(fitting)}


def presets_named(name: str) -> list[Preset]:
    """The presets of a name: one, or one for generations and one for reconstructions.

    Raises UserError for an unknown name.
    """
    named = [preset for preset in PRESETS if preset.name == name]
    if not named:
        names = ", ".join(dict.fromkeys(preset.name for preset in PRESETS))
        raise UserError(f"protocol {name!r} is not known; choose one of: {names}")
    return named

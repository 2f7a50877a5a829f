"""The published scripts: the stages of each, with the commands that they run.

docs/pipelines.md describes them. At --scale tiny, a script first trains the networks that it otherwise starts from.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.messages import UserError
from engine.pipeline import Stage, config_flags, module_stage
from engine.recipe_names import recipe_file
from evaluations.metrics.extractors import FILE_EXTRACTOR
from evaluations.pipelines.published_variables import (
    batch_flags,
    generator_items,
    probe_items,
    sampling_flags,
    tokenizer_items,
)
from evaluations.pipelines.requests import DEFAULT_GENERATOR, DEFAULT_TOKENIZER, Request
from evaluations.pipelines.stages import (
    both_networks,
    codes_stage,
    generator_stage,
    on_one_process,
    probe_stage,
    report_stage,
    search_stage,
    val_loss_stage,
)
from evaluations.run_layout import RunLayout

PROBING_GENERATOR = "gpt/ar_probe"  # the generator that AR probing trains
IMAGES, STORED_CODES = "imagenet", "imagenet_code"  # values of DATASET for a generator
NO_PUBLISHED_FILE = "only a published file needs it, and {} is no file; a folder knows its architecture"
TINY_SAMPLES = ["--num-fid-samples", "120", "--per-proc-batch-size", "60"]  # enough for 112 features, see `trust`


@dataclass
class Script:
    """The stages of a script, and where they write."""

    name: str  # of the script
    run: Path
    stages: list[Stage]
    notes: list[str] = field(default_factory=list)


# ------------------------------------------------------------------------------------------------ the scripts
def train_vq_and_eval(request: Request) -> Script:
    """A tokenizer: training, reconstruction, and AR probing without its linear probe."""
    recipe = request.recipe("TOK_CONFIG", default=DEFAULT_TOKENIZER, what="the tokenizer")
    layout = RunLayout(request.run_dir("VQ_EXP_DIR", "runs/vq", recipe[0].stem))
    probing = RunLayout(layout.ar_probe)
    variables = request.variables

    # The generator that probes the tokenizer.
    generator = request.named_recipe("LM_CONFIG", default=PROBING_GENERATOR, what="the GPT")
    networks = both_networks(layout.tokenizer, probing.generator)
    stages = [
        tokenizer_training(request, layout, recipe, request.overrides),
        reconstruction(request, layout),
        codes_stage(layout.tokenizer, probing.codes, *view_flags(request)),
        generator_stage(
            probing.generator, request.generator_files([generator]), layout.tokenizer, probing.codes,
            *generator_items(variables, request.batch_size([generator]), has_cool_down=False),
        ),
        search_stage(probing, networks, *measured_samples(request, "constant"), *_scales(request)),
        val_loss_stage(probing, networks, *val_loss_flags(request)),
        report_stage(layout.root),
    ]  # fmt: skip
    return Script("train_vq_and_eval", layout.root, stages, variables.notes())


def train_c2i_and_eval(request: Request) -> Script:
    """A generator: codes, training, guidance search, validation loss."""
    recipe = request.recipe("LM_CONFIG", "GPT_MODEL", default=DEFAULT_GENERATOR, what="the GPT")
    layout = RunLayout(request.run_dir("LM_EXP_DIR", "runs/gpt", recipe[0].stem))

    tokenizer, image_flags, stages = tokenizer_for_training(request, layout)
    networks = both_networks(tokenizer, layout.generator)
    val_flags = image_flags[image_flags.index("--val-path") :] if image_flags else []
    overlays, codes = tokens_of(request, layout)
    if codes is not None:
        stages.append(codes_stage(tokenizer, codes, *image_flags, *view_flags(request)))
    stages += [
        generator_stage(
            layout.generator, request.generator_files([*recipe, *overlays]), tokenizer, codes,
            *generator_items(request.variables, request.batch_size(recipe, request.overrides)), *request.overrides,
        ),
        search_stage(layout, networks, *measured_samples(request, "step"), *_scales(request)),
        val_loss_stage(layout, networks, *val_flags, *val_loss_flags(request)),
        report_stage(layout.root),
    ]  # fmt: skip
    return Script("train_c2i_and_eval", layout.root, stages, request.variables.notes())


def eval_c2i(request: Request) -> Script:
    """A trained generator: its samples at one guidance scale, and its validation loss."""
    request.refuse_recipe("this script trains nothing; VQ_CKPT and GPT_CKPT name what it measures")
    networks = Networks.of(request, needs_generator=True)
    layout = RunLayout(request.run_dir("LM_EXP_DIR", "runs/gpt", f"eval_{networks.name}"))
    stages = networks.rehearsal(request, layout)

    flags = networks.flags(layout)
    output = str(layout.result("generation"))
    stages += [
        module_stage(
            "generation", "evaluations.generation", *flags, "--output", output, *measured_samples(request, "step")
        ),
        val_loss_stage(layout, flags, *networks.held_out_flags(request), *val_loss_flags(request)),
        report_stage(layout.root),
    ]
    return Script("eval_c2i", layout.root, stages, request.variables.notes())


PROBES = ("lm", "tok", "all")  # whose features a script probes, by the names of the scripts


def lin_probe_and_eval(request: Request, probed: str) -> Script:
    """Linear probes of a generator (`lm`), of a tokenizer (`tok`), or of both (`all`)."""
    is_generator, is_tokenizer = probed in ("lm", "all"), probed in ("tok", "all")
    if is_generator and is_tokenizer:
        request.refuse_recipe("two probes are trained; LM_PROBE_CONFIG and TOK_PROBE_CONFIG name their recipes")
    networks = Networks.of(request, needs_generator=is_generator)
    if is_generator:
        run = request.run_dir("LM_LIN_EXP_DIR", "runs/gpt_linear_probe", networks.name)
    else:
        run = request.run_dir("TOK_LIN_EXP_DIR", "runs/vq_linear_probe", networks.name)
    layout = RunLayout(run)

    stages = networks.rehearsal(request, layout)
    for has_probe, of_generator in ((is_generator, True), (is_tokenizer, False)):
        if has_probe:
            stages.append(linear_probe(request, networks, layout, of_generator=of_generator))
    stages.append(report_stage(layout.root))
    return Script(f"train_{probed}_lin_probe_and_eval", layout.root, stages, request.variables.notes())


# ------------------------------------------------------------------------------------------------ networks
@dataclass(frozen=True)
class Networks:
    """The trained networks that a script starts from; at --scale tiny it trains them first."""

    tokenizer: str = ""  # folder or published file; empty at --scale tiny
    tokenizer_config: Path | None = None  # of a published file
    has_generator: bool = False
    generator: str = ""  # like `tokenizer`
    generator_config: Path | None = None

    @classmethod
    def of(cls, request: Request, *, needs_generator: bool) -> Networks:
        """The networks that variables name. Raises UserError where one is not named."""
        if request.is_tiny:
            return cls(has_generator=needs_generator)
        tokenizer, config = tokenizer_of(request)
        if not needs_generator:
            return cls(tokenizer, config)

        generator = request.variables.text("GPT_CKPT", "LM_CKPT")
        if not generator:
            raise UserError("GPT_CKPT is not set; it names the trained GPT, a folder or a published file")
        if not Path(generator).is_file():
            request.variables.set_aside(NO_PUBLISHED_FILE.format(generator), "LM_CONFIG", "GPT_MODEL")
            return cls(tokenizer, config, True, generator)

        # A published file does not say its architecture.
        file = request.named_recipe("LM_CONFIG", "GPT_MODEL", default="", what=f"the GPT in {generator}")
        return cls(tokenizer, config, True, generator, file)

    @property
    def name(self) -> str:
        """For the folder of the results."""
        path = self.generator or self.tokenizer
        return Path(path).stem if path else "networks"

    def rehearsal(self, request: Request, layout: RunLayout) -> list[Stage]:
        """The stages that train the networks at --scale tiny; none otherwise."""
        if not request.is_tiny:
            return []
        generator = rehearsed_generator(request, layout) if self.has_generator else []
        return [*rehearsed_tokenizer(request, layout), *generator]

    def flags(self, layout: RunLayout) -> list[str]:
        """The flags that name both networks."""
        flags = both_networks(self.tokenizer or layout.tokenizer, self.generator or layout.generator)
        if self.tokenizer_config:
            flags += ["--tok-config", str(self.tokenizer_config)]
        if self.generator_config:
            flags += ["--gpt-config", str(self.generator_config)]
        return flags

    def held_out_flags(self, request: Request) -> list[str]:
        """Held-out images for a published tokenizer, which knows none."""
        return ["--val-path", request.held_out_images] if self.tokenizer_config else []

    def probe_overrides(self, layout: RunLayout, *, of_generator: bool) -> list[str]:
        """The keys of a probe that name its networks."""
        overrides = [f"network.tokenizer={self.tokenizer or layout.tokenizer}"]
        if self.tokenizer_config:
            overrides.append(f"network.tokenizer_config={self.tokenizer_config}")
        if of_generator:
            overrides.append(f"network.gpt={self.generator or layout.generator}")
            if self.generator_config:
                overrides.append(f"network.gpt_config={self.generator_config}")
        return overrides


def tokenizer_of(request: Request) -> tuple[str, Path | None]:
    """(VQ_CKPT, the YAML of its architecture if it is a published file). Raises UserError where one is missing."""
    path = request.variables.text("VQ_CKPT", "VQ_CKPT_PATH")
    if not path:
        raise UserError("VQ_CKPT is not set; it names the trained tokenizer, a folder or a published file")
    if not Path(path).is_file():
        request.variables.set_aside(NO_PUBLISHED_FILE.format(path), "TOK_CONFIG")
        return path, None
    return path, request.named_recipe("TOK_CONFIG", default="", what=f"the tokenizer in {path}")


def tokenizer_for_training(request: Request, layout: RunLayout) -> tuple[Path, list[str], list[Stage]]:
    """(the folder of the tokenizer that a generator is trained for, flags of its images, the stages that make it).

    A published file is converted into a folder first, and takes the images of ImageNet.
    """
    if request.is_tiny:
        return layout.tokenizer, [], rehearsed_tokenizer(request, layout)
    path, config = tokenizer_of(request)
    if config is None:
        return Path(path), [], []
    conversion = module_stage(
        layout.tokenizer.name, "tokenizer.convert",
        "--vq-ckpt", path, "--tok-config", str(config), "--output", str(layout.tokenizer),
    )  # fmt: skip
    stage = replace(on_one_process(conversion), product=layout.tokenizer)
    image_flags = ["--data-path", request.training_images, "--val-path", request.held_out_images]
    return layout.tokenizer, image_flags, [stage]


# ------------------------------------------------------------------------------------------------ stages
def tokenizer_training(request: Request, layout: RunLayout, recipe: list[Path], overrides: list[str]) -> Stage:
    """The training of a tokenizer."""
    arguments = config_flags(request.tokenizer_files(recipe))
    items = tokenizer_items(request.variables, request.batch_size(recipe, overrides))
    return module_stage(
        layout.tokenizer.name, "tokenizer.train", *arguments, f"loop.run_dir={layout.tokenizer}", *items, *overrides
    )


def tokens_of(request: Request, layout: RunLayout) -> tuple[list[Path], Path | None]:
    """(overlays of a generator's recipe, the folder of the codes that it is trained on).

    There are codes unless DATASET asks for images, which become tokens in each step of the training.
    """
    dataset = request.variables.text("DATASET")
    if dataset == IMAGES:
        return [recipe_file("gpt/online")], None
    if dataset not in ("", STORED_CODES):
        raise UserError(f"DATASET={dataset} must be {STORED_CODES} (the default) or {IMAGES} (tokens on the fly)")
    return [], Path(request.variables.text("CODEPATH") or layout.codes)


def rehearsed_tokenizer(request: Request, layout: RunLayout) -> list[Stage]:
    """At --scale tiny: the training of the tokenizer that a script otherwise starts from."""
    recipe = request.named_recipe("TOK_CONFIG", default=DEFAULT_TOKENIZER, what="the tokenizer")
    return [tokenizer_training(request, layout, [recipe], [])]


def rehearsed_generator(request: Request, layout: RunLayout) -> list[Stage]:
    """At --scale tiny: the codes and the training of the generator that a script otherwise starts from."""
    recipe = request.named_recipe("LM_CONFIG", "GPT_MODEL", default=DEFAULT_GENERATOR, what="the GPT")
    files = request.generator_files([recipe])
    items = generator_items(request.variables, request.batch_size([recipe]))
    return [
        codes_stage(layout.tokenizer, layout.codes, *view_flags(request)),
        generator_stage(layout.generator, files, layout.tokenizer, layout.codes, *items),
    ]


def reconstruction(request: Request, layout: RunLayout) -> Stage:
    """rFID, PSNR, SSIM and LPIPS of the held-out images; at --scale tiny what the offline network gives."""
    flags = ["--vq-ckpt", str(layout.tokenizer), "--output", str(layout.result("reconstruction"))]
    if not request.is_tiny:
        flags += ["--extractor", FILE_EXTRACTOR, "--lpips", *_reconstruction_reference(request)]
    return module_stage("reconstruction", "evaluations.reconstruction", *flags, *batch_flags(request.variables))


def linear_probe(request: Request, networks: Networks, layout: RunLayout, *, of_generator: bool) -> Stage:
    """A linear probe of the generator, or of the tokenizer."""
    folder = layout.generator_probe if of_generator else layout.tokenizer_probe
    variable = "LM_PROBE_CONFIG" if of_generator else "TOK_PROBE_CONFIG"
    recipe = request.files or [request.named_recipe(variable, default=f"eval/{folder.name}", what="the probe")]
    return probe_stage(
        folder.name, folder, request.probe_files(recipe),
        *networks.probe_overrides(layout, of_generator=of_generator),
        *probe_items(request.variables, of_generator=of_generator), *request.overrides,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ flags
def view_flags(request: Request) -> list[str]:
    """The published recipe takes ten crops of an image; a rehearsal takes one."""
    return [] if request.is_tiny else ["--ten-crop"]


def measured_samples(request: Request, schedule: str) -> list[str]:
    """How samples are drawn and measured: 50,000 with random labels against the reference of the training images."""
    flags = sampling_flags(request.variables, schedule)
    if request.is_tiny:
        return [*flags, *TINY_SAMPLES]
    return [*flags, "--labels", "random", "--gt-npz-path", _generation_reference(request)]


def _scales(request: Request) -> list[str]:
    """A rehearsal measures two guidance scales; otherwise the published search walks."""
    return ["--scales", "1,1.5"] if request.is_tiny else []


def val_loss_flags(request: Request) -> list[str]:
    """The precision of the generator, and the size of batches."""
    precision = request.variables.text("LM_PRECISION", "PRECISION")
    return [*(["--precision", precision] if precision else []), *batch_flags(request.variables)]


def _generation_reference(request: Request) -> str:
    return request.variables.text("GT_NPZ_PATH") or "pretrained/VIRTUAL_imagenet256_labeled.npz"


def _reconstruction_reference(request: Request) -> list[str]:
    """The file of GT_VAL_NPZ_PATH. Where it is the default and not there, the held-out images themselves, which give
    the same number.
    """
    path = request.variables.text("GT_VAL_NPZ_PATH")
    is_default = not path or Path(path).name == "val_imagenet.npz"
    if is_default and not Path(path or "val_imagenet.npz").is_file():
        request.variables.say(
            f"rFID is measured against the held-out images themselves: there is no {path or 'GT_VAL_NPZ_PATH'} "
            "(at 256 px the number is the same)"
        )
        return []
    return ["--gt-npz-path", path]

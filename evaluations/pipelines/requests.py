"""What a user asks of a published script: recipe, overrides, scale, folder, and the published variables."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from autoregressive.models.registry import GeneratorConfig
from engine.data.config import DataConfig
from engine.installation import CONFIGS
from engine.messages import UserError
from engine.recipe_names import recipe_file
from evaluations.pipelines.published_variables import PublishedVariables
from evaluations.trainers import recipe_tree
from tokenizer.models.registry import ModelConfig

FULL = "full"
TINY = "tiny"
SCALES = (FULL, TINY)
TINY_CONFIGS = CONFIGS / TINY
DEFAULT_TOKENIZER = "vq/VQ_SS256"  # trained at --scale tiny where the user names none
DEFAULT_GENERATOR = "gpt/GPT_B256"

PUBLISHED_SIZE = "GPT-"  # GPT_MODEL=GPT-B stands for the recipe gpt/GPT_B256

# Variables of networks, places and lengths, which --scale tiny replaces by its own.
NOT_AT_TINY_SCALE = (
    "TOK_EPOCH", "TOK_BSZ", "TOK_EARLY_STOP_ITER", "CKPT_EVERY", "DATASET", "LM_EPOCH", "LM_BSZ", "LM_STOP_ITER",
    "WARM_ITER", "EVAL_BATCH_PER_GPU", "LIN_BSZ", "VQ_CKPT", "VQ_CKPT_PATH", "GPT_CKPT", "LM_CKPT", "CODEPATH",
)  # fmt: skip


def add_script_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that all published scripts have."""
    # What is trained.
    parser.add_argument(
        "items", nargs="*", metavar="RECIPE.yaml | key=value",
        help="recipe of what is trained (else a variable names it), and keys of it to set",
    )  # fmt: skip
    parser.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="recipe or YAML file; repeatable, later ones win"
    )

    # Its scale and its folder, or only a look.
    parser.add_argument(
        "--scale", default=FULL, choices=SCALES,
        help="tiny: a rehearsal of all stages with small networks, digits and a few steps, minutes on a CPU",
    )  # fmt: skip
    parser.add_argument("--run-dir", type=Path, help="folder of the run (default: the recipe's name in an EXP_DIR)")
    parser.add_argument(
        "--dry-run", action="store_true", help="show stages, what is missing on this machine, and the cost, then exit"
    )


class Request:
    """What is asked, with every name of a recipe turned into a file."""

    def __init__(self, args: argparse.Namespace, environment: Mapping[str, str]) -> None:
        """Raises UserError for a recipe that is not there, and an item that is neither a recipe nor `key=value`."""
        self.is_tiny = args.scale == TINY
        reason = f"--scale {TINY} has networks, data and lengths of its own"
        self.variables = PublishedVariables(environment, NOT_AT_TINY_SCALE if self.is_tiny else (), reason)

        named = [item for item in args.items if "=" not in item or Path(item).is_file()]
        self.files = [recipe_file(name) for name in [*named, *args.config]]
        self.overrides = [item for item in args.items if item not in named]
        self._run_dir = args.run_dir

    # -------------------------------------------------------------------------------------------- recipes
    def recipe(self, *names: str, default: str, what: str) -> list[Path]:
        """The YAML files of what the script trains: those of the command line, else that which a variable names.

        `default` is taken at --scale tiny, where any will do. Raises UserError where there is none.
        """
        if self.files:
            return self.files
        return [self.named_recipe(*names, default=default if self.is_tiny else "", what=what)]

    def named_recipe(self, *names: str, default: str, what: str) -> Path:
        """The YAML file that the first of these variables names, else the recipe `default`."""
        name = self.variables.text(*names) or default
        if not name:
            raise UserError(f"name the recipe of {what}: a YAML file as the first argument, or in {names[0]}")
        if name.startswith(PUBLISHED_SIZE):
            name = f"gpt/{name.replace('-', '_')}256"
        return recipe_file(name)

    def refuse_recipe(self, reason: str) -> None:
        """Raises UserError where the command line names a recipe, or a key of one."""
        given = [*map(str, self.files), *self.overrides]
        if given:
            raise UserError(f"{given[0]}: {reason}")

    def batch_size(self, recipe: Sequence[Path], overrides: Sequence[str] = ()) -> int:
        """The images per step of a recipe with `key=value` overrides."""
        key = "data.global_batch_size"
        trees = [recipe_tree([*map(str, recipe)]), OmegaConf.from_dotlist([o for o in overrides if o.startswith(key)])]
        return int(OmegaConf.select(OmegaConf.merge(*trees), key, default=DataConfig().global_batch_size))

    def tokenizer_files(self, recipe: Sequence[Path]) -> list[Path]:
        """The YAML files of a tokenizer's training; at --scale tiny with the sizes for its kind."""
        if not self.is_tiny:
            return list(recipe)
        return [*recipe, self._tiny_sizes(recipe, ModelConfig().name), TINY_CONFIGS / "tokenizer.yaml"]

    def generator_files(self, recipe: Sequence[Path]) -> list[Path]:
        """The YAML files of a generator's training; at --scale tiny with the sizes for its kind."""
        if not self.is_tiny:
            return list(recipe)
        training = TINY_CONFIGS / "gpt.yaml"  # and the sizes of the default kind
        sizes = self._tiny_sizes(recipe, GeneratorConfig().name)
        return [*recipe, training] if sizes == training else [*recipe, training, sizes]

    @staticmethod
    def _tiny_sizes(recipe: Sequence[Path], default: str) -> Path:
        """The overlay with the sizes for the kind of network. Raises UserError where there is none."""
        name = OmegaConf.select(recipe_tree([*map(str, recipe)]), "model.name", default=default)
        sizes = TINY_CONFIGS / f"{name}.yaml"
        if not sizes.is_file():
            raise UserError(f"--scale {TINY} has no sizes for model.name={name}: there is no {sizes}")
        return sizes

    def probe_files(self, recipe: Sequence[Path]) -> list[Path]:
        """The YAML files of a linear probe."""
        return [*recipe, TINY_CONFIGS / "linear_probe.yaml"] if self.is_tiny else list(recipe)

    # -------------------------------------------------------------------------------------------- places
    def run_dir(self, variable: str, default: str, name: str) -> Path:
        """The folder of the run: --run-dir, else `name` in the folder of a variable, which is `default` if not set."""
        if self._run_dir is not None:
            return self._run_dir
        suffix = f"-{TINY}" if self.is_tiny else ""
        return Path(self.variables.text(variable) or default) / f"{name}{suffix}"

    @property
    def training_images(self) -> str:
        """The folder of ImageNet's training images."""
        return f"{self.variables.text('IMGNET_ROOT') or 'data/imagenet'}/ILSVRC2012_img_train"

    @property
    def held_out_images(self) -> str:
        """The folder of ImageNet's validation images."""
        default = f"{self.variables.text('IMGNET_ROOT') or 'data/imagenet'}/ILSVRC2012_img_val"
        return self.variables.text("VAL_PATH") or default

"""The YAML files under configs/: which there are, what each is laid over, and the config it stands for."""

import re
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from autoregressive import train as gpt_train
from engine.config import load_config
from evaluations import ar_probe, classifier, linear_probe
from tokenizer import train as tokenizer_train

CONFIGS = Path(__file__).parents[1] / "configs"
ENTRIES = {  # kind -> the module of its entry, its config, and the check that builds the model
    "tokenizer": (tokenizer_train, tokenizer_train.TokenizerTrainConfig, tokenizer_train.validate),
    "gpt": (gpt_train, gpt_train.GPTTrainConfig, gpt_train.validate),
    "classifier": (classifier, classifier.ClassifierTrainConfig, lambda config: None),
    "probe": (linear_probe, linear_probe.LinearProbeConfig, linear_probe.validate),
    "chain": (ar_probe, ar_probe.ARProbeConfig, lambda config: None),
}


def recipes(folder: str = "") -> list[Path]:
    """All YAML files under configs/`folder`."""
    return sorted((CONFIGS / folder).rglob("*.yaml"))


def name_of(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def layers_of(path: Path) -> list[Path]:
    """The files that `path` is used with: itself, over the base that the first line of an overlay names."""
    base = re.match(r"# Overlay for configs/(\S+\.yaml)", path.read_text(encoding="utf-8"))
    return [CONFIGS / base[1], path] if base else [path]


def kind_of(path: Path) -> str:
    """The entry that `path` is for, by the sections that only it has."""
    tree = OmegaConf.merge(*(OmegaConf.load(layer) for layer in layers_of(path)))
    if "probe" in tree or "gpt_configs" in tree:
        return "probe" if "probe" in tree else "chain"
    if "codes" in tree.get("data", {}) or {"vocab_size", "num_tokens"} & set(tree.get("model", {})):
        return "gpt"
    return "classifier" if "max_shift" in tree.get("model", {}) else "tokenizer"


def load(path: Path) -> tuple[Any, Any]:
    """The config of a recipe, and its model on the meta device (None where the entry trains no network of its own)."""
    _, schema, validate = ENTRIES[kind_of(path)]
    config = load_config(schema, layers_of(path))
    return config, validate(config)

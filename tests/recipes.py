"""The YAML files under configs/: which there are, and the config that each stands for."""

from pathlib import Path
from typing import Any

from autoregressive import train as gpt_train
from engine.config import load_config, read_yaml
from engine.yaml_files import read_own_layer
from evaluations import ar_probe, classifier, linear_probe, text_reader
from tokenizer import train as tokenizer_train

CONFIGS = Path(__file__).parents[1] / "configs"
ENTRIES = {  # kind -> the module of its entry, its config, and the check that builds the model
    "tokenizer": (tokenizer_train, tokenizer_train.TokenizerTrainConfig, tokenizer_train.validate),
    "gpt": (gpt_train, gpt_train.GPTTrainConfig, gpt_train.network_on_meta),
    "reader": (text_reader, text_reader.ReaderTrainConfig, lambda config: None),
    "classifier": (classifier, classifier.ClassifierTrainConfig, lambda config: None),
    "probe": (linear_probe, linear_probe.LinearProbeConfig, linear_probe.validate),
    "chain": (ar_probe, ar_probe.ARProbeConfig, lambda config: None),
}


def recipes(folder: str = "") -> list[Path]:
    """All YAML files under configs/`folder`."""
    return sorted((CONFIGS / folder).rglob("*.yaml"))


def name_of(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def base_of(path: Path) -> Path | None:
    """The file that `path` is laid over, or None."""
    return read_own_layer(path)[0]


def kind_of(path: Path) -> str:
    """The entry that `path` is for, by the sections that only it has."""
    tree = read_yaml(path)
    if "probe" in tree or "gpt_configs" in tree:
        return "probe" if "probe" in tree else "chain"
    if "codes" in tree.get("data", {}) or "gpt" in tree.get("model", {}):
        return "gpt"
    if "num_crops" in tree.get("data", {}):
        return "reader"
    return "classifier" if "max_shift" in tree.get("model", {}) else "tokenizer"


def load(path: Path) -> tuple[Any, Any]:
    """The config of a recipe, and its model on the meta device (None where the entry trains no network of its own)."""
    _, schema, validate = ENTRIES[kind_of(path)]
    config = load_config(schema, [path])
    return config, validate(config)

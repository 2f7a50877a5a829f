"""Old spellings of config keys, config values, code stores and results: all are read, only the new ones are written.

This is the one table of renames. A config alias applies only where the schema has the new key and not the old one, so
that a key of the same name in another config (the `model.width` of a classifier, say) stays what it is.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engine.config_trees import default_tree
from engine.config_types import short_value
from engine.messages import ConfigError, UserError
from engine.validation import problems_of

GPT_KEYS = (
    "size", "width", "layers", "heads", "vocab_size", "head_layers", "num_tokens", "num_classes", "positions",
    "qk_norm", "class_dropout_prob", "token_dropout", "residual_dropout",
)  # fmt: skip

# Old dotted key, from the root of a config -> new dotted key.
CONFIG_KEYS = {
    "loss.discriminator.base_channels": "loss.discriminator.patchgan.base_channels",
    "loss.discriminator.num_layers": "loss.discriminator.patchgan.num_layers",
    "loss.discriminator.norm": "loss.discriminator.patchgan.norm",
    **{f"model.{name}": f"model.gpt.{name}" for name in GPT_KEYS},
    "model.streams": "model.gpt.codebook_sizes",
    "loop.wandb_project": "loop.wandb.project",
}

# Dotted key -> {old value: new value}.
CONFIG_VALUES = {
    "model.quantizer.gq.entropy_form": {"factorised": "factorized"},
    "views": {"centre": "center"},
    "assets.allow_unknown": {False: []},
}

# Dotted key -> {old value that no new one stands for: what to set instead}.
REMOVED_VALUES = {
    "assets.allow_unknown": {
        True: "a list of the networks whose file may have another hash than the one on record, as in "
        "assets.allow_unknown=[vgg16]. Files without a hash on record are accepted anyway"
    },
}

# Keys and values of the manifest of a code store.
MANIFEST_KEYS = {"streams": "codebook_sizes"}
MANIFEST_VALUES = {"views": {"centre": "center"}}

# Keys of a result at any depth, and values of its facts about crops.
RESULT_KEYS = {"memorised": "memorized"}
CROPS = {
    "centre": "center",
    "bilinear centre": "bilinear center",
    "centre of 1.1 times the size": "center of 1.1 times the size",
}
# Facts that older results do not name, because there was no other choice: key -> value, by the kind of the protocol.
RESULT_FACTS = {kind: {"resize": "bicubic, not antialiased"} for kind in ("generation", "reconstruction")}
RESULT_VALUES = {"crop": CROPS, "train_crop": CROPS, "views": {"centre": "center"}}


# ------------------------------------------------------------------------------------------------------- configs
def current_tree(schema: Any, tree: DictConfig, source: str = "config") -> DictConfig:
    """A copy of `tree` in which old keys and values that `schema` has under new names are renamed; `tree` itself where
    there are none.

    `schema` is the dataclass of a root config, or what `OmegaConf.structured` makes of it. `source` is named in
    messages. Raises ConfigError where `tree` has a key in both spellings, or a value that means nothing any more.
    """
    if not _has_old_spelling(tree):
        return tree
    structured = schema if isinstance(schema, DictConfig) else default_tree(schema)
    tree = copy.deepcopy(tree)

    for old, new in CONFIG_KEYS.items():
        if _node(tree, old) is not None and _is_renamed_key(structured, old, new):
            _move(tree, old, new, source)

    for key, renames in CONFIG_VALUES.items():
        value = _node(tree, key)
        if value is None or OmegaConf.is_config(value):
            continue
        new_value = renames.get(value._value())
        if new_value is not None and _is_renamed_value(structured, key, value._value(), new_value):
            OmegaConf.update(tree, key, new_value)
        elif value._value() in REMOVED_VALUES.get(key, {}) and _node(structured, key) is not None:
            accepted = REMOVED_VALUES[key][value._value()]
            raise ConfigError(
                f"{source}: {key}={short_value(value._value())} is no longer accepted; it must be {accepted}"
            )
    return tree


def _has_old_spelling(tree: DictConfig) -> bool:
    """Whether a tree has a key, or a value of a key, that once had another name or meaning in any schema."""
    if any(_node(tree, old) is not None for old in CONFIG_KEYS):
        return True
    for key in CONFIG_VALUES:
        node = _node(tree, key)
        is_value = node is not None and not OmegaConf.is_config(node)
        if is_value and node._value() in {*CONFIG_VALUES[key], *REMOVED_VALUES.get(key, {})}:
            return True
    return False


def current_key(schema: Any, key: str) -> str:
    """The dotted `key` under its present name in `schema` (see `current_tree`)."""
    structured = schema if isinstance(schema, DictConfig) else default_tree(schema)
    new = CONFIG_KEYS.get(key)
    return new if new is not None and _is_renamed_key(structured, key, new) else key


def _node(tree: Any, key: str) -> Any:
    """The node at a dotted key, without resolving interpolations; None where there is none."""
    for part in key.split("."):
        if not isinstance(tree, DictConfig) or tree._is_none() or tree._is_missing() or tree._is_interpolation():
            return None
        tree = tree._get_node(part, validate_access=False)
    return tree


def _move(tree: DictConfig, old: str, new: str, source: str) -> None:
    """Takes the node at the dotted key `old` to `new`."""
    if _node(tree, new) is not None:
        raise ConfigError(f"{source}: both {new} and {old} (its old name) are set; keep {new}")
    parent_key, _, name = old.rpartition(".")
    value = _node(tree, old)
    del _node(tree, parent_key)[name]

    # Sections on the way to the new key may not be there yet, or be reset by null.
    *sections, name = new.split(".")
    node = tree
    for section in sections:
        child = node._get_node(section)
        if child is None or not isinstance(child, DictConfig) or child._is_none():
            node[section] = {}
        node = node._get_node(section)
    node[name] = value


def _is_renamed_key(structured: DictConfig, old: str, new: str) -> bool:
    """Whether the schema has the dotted key `new` and no longer `old`."""
    return _node(structured, new) is not None and _node(structured, old) is None


def _is_renamed_value(structured: DictConfig, key: str, old: Any, new: Any) -> bool:
    """Whether the section of `key` accepts the value `new` and no longer `old`."""
    parent_key, _, name = key.rpartition(".")
    section = _node(structured, parent_key) if parent_key else structured
    if _node(structured, key) is None:
        return False
    return _accepts(section, name, new) and not _accepts(section, name, old)


def _accepts(section: DictConfig, name: str, value: Any) -> bool:
    """Whether `section`, otherwise at its defaults, may have this value."""
    trial = copy.deepcopy(section)
    try:
        trial[name] = value
        return not problems_of(OmegaConf.to_object(trial))
    except (OmegaConfBaseException, ConfigError):
        return False


# -------------------------------------------------------------------------------------------- code stores and results
def current_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a code store with present names. Raises UserError where it has a key in both spellings."""
    renamed = _renamed_keys(manifest, MANIFEST_KEYS)
    return {key: _renamed_value(MANIFEST_VALUES.get(key, {}), value) for key, value in renamed.items()}


def current_result(result: Any) -> Any:
    """A result, or any part of one, with present names of metrics and crops, at every depth.

    Facts of a protocol that older programs did not name get the only value that they had.
    """
    renamed = _renamed_result(result)
    if isinstance(renamed, Mapping) and isinstance(renamed.get("protocol"), Mapping):
        protocol = dict(renamed["protocol"])
        are_from_files = "samples" in protocol

        # The size of images from files was under another name; images that were made here had one resize.
        if are_from_files and "image_size" in protocol:
            protocol["image_size_eval"] = protocol.pop("image_size")
        if not are_from_files and "image_size_eval" in protocol:
            protocol = RESULT_FACTS.get(protocol.get("kind"), {}) | protocol
        renamed["protocol"] = protocol
    return renamed


def _renamed_result(result: Any) -> Any:
    if isinstance(result, list):
        return [_renamed_result(item) for item in result]
    if not isinstance(result, Mapping):
        return result
    renamed = _renamed_keys(result, RESULT_KEYS)
    return {key: _renamed_value(RESULT_VALUES.get(key, {}), _renamed_result(value)) for key, value in renamed.items()}


def _renamed_keys(facts: Mapping[str, Any], renames: Mapping[str, str]) -> dict[str, Any]:
    """`facts` under present names. Raises UserError where both spellings of a name are there."""
    for old, new in renames.items():
        if old in facts and new in facts:
            raise UserError(f"both {new} and {old} (its old name) are there; keep {new}")
    return {renames.get(key, key): value for key, value in facts.items()}


def _renamed_value(renames: Mapping[str, str], value: Any) -> Any:
    """The present spelling of a text; any other value as it is."""
    return renames.get(value, value) if isinstance(value, str) else value

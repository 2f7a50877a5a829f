"""Commands that only look start fast: what is slow to import is not imported by them, nor when a process ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

from mains import entry_modules

from engine.installation import CODE
from evaluations.benchmarks.startup import COMMANDS, MORE_COMMANDS

# Modules that take from a tenth of a second up, and those that only some evaluations, losses or sources use.
SLOW = [
    "torch.distributed.tensor", "torch.distributed.fsdp", "torch.distributed.checkpoint", "torch.distributed.run",
    "torch._dynamo", "torch._inductor", "torch.onnx", "sympy", "triton", "torchvision", "timm", "lpips", "scipy",
    "torch_fidelity", "diffusers", "webdataset", "wandb", "matplotlib", "tensorboardX",
    "PIL.PngImagePlugin", "PIL.JpegImagePlugin",
]  # fmt: skip

# Runs entries in one process and tells, as JSON, which slow modules each of them was the first to import.
SCRIPT = """
import atexit, contextlib, io, json, sys
sys.path.insert(0, "tests")
slow, commands = json.loads(sys.argv[1])
told, before = {}, set()

def newly_imported():
    new = [name for name in slow if name in sys.modules and name not in before]
    before.update(new)
    return new

def tell():
    told["at exit"] = newly_imported()
    print(json.dumps(told))

atexit.register(tell)  # first: it runs last

from mains import main_of

for module, *arguments in commands:
    sys.argv = ["entry", *arguments]
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            main_of(module)()
        except SystemExit as stop:
            assert stop.code in (0, None), (module, arguments, stop.code)
    told[" ".join([module, *arguments])] = newly_imported()

from engine.world import distributed_world

with distributed_world("cpu"):
    pass
told["a world"] = newly_imported()
"""


def slow_imports(commands: list[list[str]]) -> dict[str, list[str]]:
    """{command: slow modules that it imported} of commands in one process, and of its end."""
    environment = {**os.environ, "PYTHONPATH": str(CODE), "IMGNET_ROOT": "imagenet"}
    arguments = [sys.executable, "-c", SCRIPT, json.dumps([SLOW, commands])]
    done = subprocess.run(arguments, cwd=CODE, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_help_imports_nothing_slow():
    """Of every entry."""
    told = slow_imports([[module, "--help"] for module in sorted(entry_modules())])
    assert len(told) == len(entry_modules()) + 2
    assert {command: names for command, names in told.items() if names} == {}


def test_a_dry_run_imports_nothing_slow():
    """Of the recipes of the benchmark and the quick start, and of one recipe of each other kind."""
    configs = {
        "tokenizer.train": ["wetok/WeTok_f16_imagenet.yaml", "llamagen/VQ_16.yaml", "vq/VQ_XLXXL256.yaml"],
        "autoregressive.train": ["quickstart/gpt.yaml", "gpt/GPT_wetok_B.yaml", "llamagen/GPT_B_384.yaml"],
        "evaluations.classifier": ["quickstart/classifier.yaml"],
        "evaluations.text_reader": ["quickstart/text_reader.yaml"],
        "evaluations.linear_probe": ["quickstart/linear_probe_gpt.yaml"],
    }
    commands = [[command.module, *command.arguments] for command in COMMANDS + MORE_COMMANDS]
    commands += [
        [module, "--config", f"configs/{name}", "--dry-run"] for module, names in configs.items() for name in names
    ]
    assert all(Path(CODE, "configs", name).is_file() for names in configs.values() for name in names)
    told = slow_imports(commands)
    assert {command: names for command, names in told.items() if names} == {}

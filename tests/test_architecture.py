"""The shape of the project: who may import whom, how long files are, what code never does."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("engine", "tokenizer", "autoregressive", "evaluations")
MAX_FILE = 500
UNPICKLER = "engine.checkpoint.foreign.unpickler"  # the one place that reads pickles, without running them
PICKLES = {"pickle", "pickletools", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
RENAMERS = {  # the places that rename: one file that is complete; whole folders
    "engine.atomic_file", "engine.checkpoint.store", "engine.checkpoint.weights", "engine.folder_lock",
}  # fmt: skip
RUNS_PROGRAMS = "tokenizer.autoencoders.torchscript"  # the one place that runs code of a file, where the user trusts it
CUDA_MODULES = ("engine.devices", "engine.world", "engine.parallel")

# Loading tokenizers, under their own and under published names: what later layers may see of `tokenizer`.
PUBLIC_TOKENIZER = [f"tokenizer.{name}" for name in ("load_tokenizer", "loading", "cli", "published", "models.base")]

# Settings of a sampler, which generators read.
SETTINGS = [f"autoregressive.{name}" for name in ("guidance", "passes", "bit_drawing", "sampling")]

# Layer -> what of ours it may import, as prefixes of module names. The longest matching layer counts.
LAYERS = {
    "engine": ["engine"],
    "tokenizer.quantizers": ["engine", "tokenizer.quantizers"],
    "tokenizer.frozen": ["engine", "tokenizer.frozen"],
    "tokenizer.discriminators": ["engine", "tokenizer.discriminators", "tokenizer.frozen"],
    "tokenizer.losses": ["engine", "tokenizer.losses", "tokenizer.discriminators", "tokenizer.frozen"],
    "tokenizer.models": ["engine", "tokenizer.models", "tokenizer.quantizers"],
    # `Tokenizer.from_pretrained` and `Generator.from_pretrained` load when they are called.
    "tokenizer.models.base": ["engine", "tokenizer.models", "tokenizer.quantizers", "tokenizer.loading"],
    "tokenizer.published": ["engine", "tokenizer.published", "tokenizer.models", "tokenizer.quantizers"],
    "tokenizer": ["engine", "tokenizer"],
    "autoregressive.codes": ["engine", "autoregressive.views"],
    "autoregressive.code_writer": ["engine", "autoregressive.codes"],
    "autoregressive.views": ["engine"],
    "autoregressive.guidance": ["engine"],
    "autoregressive.bit_drawing": ["engine"],
    "autoregressive.drawing_order": ["engine"],
    "autoregressive.passes": ["engine"],
    "autoregressive.sampling": ["engine", "autoregressive.guidance", "autoregressive.drawing_order"],
    "autoregressive.models": ["engine", "autoregressive.models", *SETTINGS],
    # A generator of scales takes sums of codes as its input, which the quantizer of scales computes.
    "autoregressive.models.next_scale": [
        "engine", "autoregressive.models", *SETTINGS,
        "tokenizer.quantizers.multi_scale",
    ],
    "autoregressive.models.base": ["engine", "autoregressive.models", "autoregressive.loading", *SETTINGS],
    "autoregressive.labels": ["engine", "autoregressive.models.base"],
    "autoregressive.generate": ["engine", "autoregressive.models", "autoregressive.labels", *SETTINGS],
    "autoregressive.training": ["engine", "autoregressive", "tokenizer.load_tokenizer", "tokenizer.loading",
                                "tokenizer.models.base"],
    "autoregressive": ["engine", "autoregressive", *PUBLIC_TOKENIZER],
    "evaluations.metrics": ["engine", "tokenizer.frozen", "tokenizer.quantizers", "evaluations.metrics"],
    "evaluations.result_intervals": [
        "evaluations.metrics.registry", "evaluations.metrics.intervals", "evaluations.metrics.blocks",
    ],
    "evaluations.results": [
        "engine", "evaluations.metrics.registry", "evaluations.metrics.intervals", "evaluations.result_intervals",
    ],
    "evaluations.comparison": [
        "engine", "evaluations.metrics.registry", "evaluations.results", "evaluations.result_intervals",
    ],
    "evaluations.image_sets": ["engine", "evaluations.results"],
    "evaluations.protocols": [
        "engine", "tokenizer.models.reconstructing", "tokenizer.quantizers.base", "autoregressive.codes",
        "evaluations.protocols",
        "evaluations.metrics", "evaluations.digits", "evaluations.image_sets", "evaluations.results",
    ],
    "evaluations.readback": [
        "engine", "tokenizer.models.reconstructing",
        *(f"evaluations.{name}" for name in ("readback", "protocols", "metrics", "image_sets", "results")),
    ],
    "evaluations.jobs": [
        "engine", "tokenizer", "autoregressive", "evaluations.protocols", "evaluations.metrics", "evaluations.digits",
        *(f"evaluations.{name}" for name in ("jobs", "cli", "image_sets", "preset_flags", "readback", "results")),
        *(f"evaluations.{name}" for name in ("image_pairs", "sample_stream", "result_intervals")),
    ],
    "evaluations.run_layout": [],
    "evaluations.pipelines": [
        "engine", "tokenizer.models.registry", "tokenizer.training",
        *(f"autoregressive.{name}" for name in ("guidance", "views", "loading", "models", "training")),
        *(f"evaluations.{name}" for name in ("pipelines", "results", "run_layout", "trainers")),
        *(f"evaluations.{name}" for name in ("cost_report", "workload", "metrics.extractors", "report.run_folder")),
    ],
    "evaluations.report": [
        "engine", "tokenizer.losses.terms", "tokenizer.models.registry", "autoregressive.models.registry",
        "autoregressive.sampling", "evaluations.metrics.registry", "evaluations.digits",
        *(f"evaluations.{name}" for name in ("report", "results", "result_intervals", "comparison", "run_layout")),
    ],
    "evaluations.scaling": [
        "engine", "tokenizer.loading", "tokenizer.models.base", "evaluations.metrics.registry",
        *(f"evaluations.{name}" for name in ("scaling", "report", "results", "result_intervals", "comparison")),
        *(f"evaluations.{name}" for name in ("run_layout", "workload", "metrics.rank_correlation")),
    ],
    "evaluations.publication": [
        "engine", "tokenizer.load_tokenizer", "autoregressive.loading", "autoregressive.models",
        "evaluations.metrics.registry", "evaluations.report.run_folder",
        *(f"evaluations.{name}" for name in ("publication", "results", "result_intervals", "run_layout")),
    ],
    "evaluations.atlas": [
        "engine", "tokenizer", "autoregressive", "evaluations.metrics",
        *(f"evaluations.{name}" for name in ("atlas", "report", "run_layout")),
    ],
    "evaluations.doctor": ["engine", "tokenizer", "autoregressive.codes", "autoregressive.training.config",
                           "evaluations.doctor"],
    "evaluations.digits": ["engine", "evaluations.digits"],
    "evaluations.probes": ["engine", "tokenizer", "autoregressive", "evaluations.probes", "evaluations.results",
                           *(f"evaluations.{name}" for name in ("image_sets", "metrics.blocks", "metrics.intervals"))],
    "evaluations": ["engine", "tokenizer", "autoregressive", "evaluations"],
}  # fmt: skip
ENGINE_LIBRARIES = {
    "torch",
    "torchvision",
    "numpy",
    "PIL",
    "tqdm",
    "omegaconf",
    "yaml",
    "safetensors",
    "wandb",
    "tensorboardX",
    "webdataset",
    "pyarrow",
    "huggingface_hub",
}
LEAF_ONLY = {
    "huggingface_hub",
    "webdataset",
    "pyarrow",
    "timm",
    "lpips",
    "torch_fidelity",
    "wandb",
    "tensorboardX",
    "scipy",
    "matplotlib",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "diffusers",
}  # imported inside functions


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def product() -> dict[str, str]:
    """Module name -> source of all product code."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {module_of(path): path.read_text(encoding="utf-8") for path in paths}


def imports(tree: ast.AST) -> list[tuple[str, bool]]:
    """(dotted name, whether it happens when the module is imported) of every import."""
    late = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.Lambda) for n in ast.walk(f)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) not in late) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level
            found += [(f"{dots}{node.module or ''}.{alias.name}", id(node) not in late) for alias in node.names]
    return found


def is_entry(source: str) -> bool:
    return '__name__ == "__main__"' in source


def within(name: str, prefixes) -> bool:
    return any(name == p or name.startswith(f"{p}.") for p in prefixes)


def import_problems(module: str, source: str, entries: set[str]) -> list[str]:
    """What is wrong with the imports of one module."""
    layer = max((name for name in LAYERS if within(module, [name])), key=len)
    problems = []
    for name, early in imports(ast.parse(source)):
        top = name.split(".")[0]
        if name.startswith("."):
            problems.append(f"relative import {name}")
        elif top in PACKAGES:
            if not within(name, LAYERS[layer]):
                problems.append(f"layer {layer} may not import {name}")
            if within(name, entries - {module}):
                problems.append(f"entry imported: {name}")
        elif top in LEAF_ONLY and early:
            problems.append(f"{top} is imported outside a function")
        if layer == "engine" and top not in {"engine", *ENGINE_LIBRARIES, *sys.stdlib_module_names}:
            problems.append(f"engine may not import {top}")
    return [f"{module}: {problem}" for problem in problems]


def handler_problems(node: ast.ExceptHandler) -> list[str]:
    """Exceptions that are caught whatever they are, or swallowed."""
    if node.type is None:
        return ["bare except"]
    is_swallowed = all(isinstance(line, ast.Pass) for line in node.body)
    return ["an exception is swallowed"] if is_swallowed else []


def call_problems(node: ast.Call) -> list[str]:
    """Calls that run text or unpickle."""
    problems = []
    name = ast.unparse(node.func)
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if name in ("eval", "exec", "compile", "os.system") or options.get("shell") == "True":
        problems.append(f"{name}() runs text as code")
    if (
        re.fullmatch(r"(torch\.(load|hub\..*)|(\w+\.)?(loads?_pickle|Unpickler)|pickle\.loads?)", name)
        or options.get("allow_pickle") == "True"
    ):
        problems.append("unpickles")
    if re.fullmatch(r"yaml\.(\w+_)?load(_all)?", name) and not name.startswith("yaml.safe_"):
        problems.append("builds objects that a YAML names")
    return problems


def program_problems(module: str, node: ast.Call) -> list[str]:
    """Files that bring code, loaded elsewhere than behind --trust-jit."""
    name = ast.unparse(node.func)
    return [f"{name}() runs a program"] if name.endswith("jit.load") and module != RUNS_PROGRAMS else []


def rename_problems(module: str, node: ast.Call) -> list[str]:
    """Files that are written under another name first by other code than the one for it (`engine.atomic_file`)."""
    name = ast.unparse(node.func)
    is_path = isinstance(node.func, ast.Attribute) and len(node.args) == 1 and not node.keywords
    renames = name in ("os.replace", "os.rename") or (is_path and node.func.attr in ("replace", "rename"))
    return [f"{name}() renames: use atomic_file"] if renames and module not in RENAMERS else []


def unpickling_problems(module: str, node: ast.Import | ast.ImportFrom) -> list[str]:
    """Imports of what unpickles, outside of the one reader of foreign files."""
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    return [f"{name} is imported" for name in names if name.split(".")[0] in PICKLES and module != UNPICKLER]


def attribute_problems(module: str, node: ast.Attribute) -> list[str]:
    """CUDA outside of the modules for devices and processes."""
    name = ast.unparse(node)
    if module not in CUDA_MODULES and name.endswith(".cuda"):
        return [f"{name}: CUDA belongs to engine/devices.py"]
    return []


def code_problems(module: str, source: str) -> list[str]:
    """Things that no module may do."""
    tree = ast.parse(source)
    problems = [] if ast.get_docstring(tree) is not None else ["has no docstring"]
    for node in ast.walk(tree):
        told = []
        if isinstance(node, ast.ExceptHandler):
            told = handler_problems(node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            told = unpickling_problems(module, node)
        elif isinstance(node, ast.Call):
            told = call_problems(node) + program_problems(module, node) + rename_problems(module, node)
        elif isinstance(node, ast.Attribute):
            told = attribute_problems(module, node)
        problems += [f"line {node.lineno}: {problem}" for problem in told]
    return [f"{module}: {problem}" for problem in problems]


# ---------------------------------------------------------------------------------------------- the project
def test_imports_follow_the_layers():
    """Ground floor, parts, tasks, entries: nobody imports an entry or what lies above."""
    modules = product()
    entries = {name for name, source in modules.items() if is_entry(source)}
    assert {"tokenizer.train", "autoregressive.train", "evaluations.quickstart"} <= entries
    problems = [p for name, source in modules.items() for p in import_problems(name, source, entries)]
    assert not problems, "\n".join(problems)


def test_code_does_nothing_dangerous():
    """No unpickling of code, no text run as code, no swallowed exception, no CUDA outside of the one module for it."""
    problems = [p for name, source in product().items() for p in code_problems(name, source)]
    assert not problems, "\n".join(problems)


def test_files_stay_small():
    """No file over 500 lines, tests included."""
    sources = product()
    tests = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("*.py")}
    assert not {name: text for name, text in (sources | tests).items() if len(text.splitlines()) > MAX_FILE}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_map_of_a_package_is_complete(package):
    """The docstring of a package names each of its modules and rooms."""
    folder = ROOT / package
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    words = set(re.findall(r"\w+", text))
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    rooms = {path.parent.name for path in folder.glob("*/__init__.py")}
    assert modules | rooms <= words, sorted((modules | rooms) - words)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The circles of an import graph, each as the modules along it."""
    done, found = set(), []

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            found.append(path[path.index(module) :])
        elif module not in done:
            for other in sorted(graph.get(module, ())):
                visit(other, [*path, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found


def test_no_circle_of_imports():
    """Modules import each other in one direction only, also for type checking."""
    modules = product()
    graph = {}
    for name, source in modules.items():
        targets = (target for target, early in imports(ast.parse(source)) if early)
        graph[name] = {m for t in targets for m in (t, t.rpartition(".")[0]) if m in modules and m != name}
    assert not circles(graph)
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c"]]


def test_no_name_on_the_path_hides_the_standard_library():
    """Commands run from the root, tests with tests/ on the path: nothing there is named like a stdlib module."""
    folders = [ROOT, ROOT / "tests", *{path.parent for path in (ROOT / "tests").rglob("test_*.py")}]
    names = {p.stem for f in folders for p in f.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    names |= {p.name for p in ROOT.iterdir() if p.is_dir() and any(p.glob("*.py"))}
    assert set(PACKAGES) <= names
    assert not names & set(sys.stdlib_module_names)


# ---------------------------------------------------------------------------------------------- the checks themselves
@pytest.mark.parametrize(
    ("module", "source", "problem"),
    [
        ("engine.x", "from tokenizer import load_tokenizer", "layer engine may not import tokenizer.load_tokenizer"),
        ("engine.x", "import timm", "engine may not import timm"),
        ("engine.x", "def f():\n    import pandas", "engine may not import pandas"),
        ("engine.x", "import wandb", "wandb is imported outside a function"),
        ("engine.x", "from . import config", "relative import"),
        ("tokenizer.losses.x", "from tokenizer.quantizers import vq", "may not import tokenizer.quantizers.vq"),
        ("tokenizer.quantizers.x", "from tokenizer.losses.terms import Term", "may not import tokenizer.losses"),
        ("tokenizer.models.x", "import tokenizer.losses", "may not import tokenizer.losses"),
        ("tokenizer.training.task", "import autoregressive.codes", "may not import autoregressive.codes"),
        ("tokenizer.x", "from tokenizer.train import terms_of", "entry imported"),
        ("tokenizer.train", "def f():\n    from evaluations import charts", "may not import evaluations.charts"),
        (
            "autoregressive.models.gpt",
            "from autoregressive.generate import x",
            "may not import autoregressive.generate",
        ),
        (
            "autoregressive.generate",
            "from autoregressive.training.task import x",
            "may not import autoregressive.training",
        ),
        ("autoregressive.models.x", "from autoregressive.codes import x", "may not import autoregressive.codes"),
        ("autoregressive.sampling", "from autoregressive.models.gpt import x", "may not import autoregressive.models"),
        ("autoregressive.guidance", "from autoregressive.sampling import x", "may not import autoregressive.sampling"),
        ("autoregressive.train", "from tokenizer.losses import terms", "may not import tokenizer.losses"),
        ("autoregressive.train", "import tokenizer.training.task", "may not import tokenizer.training.task"),
        ("evaluations.x", "import tokenizer.train", "entry imported"),
        ("evaluations.x", "import scipy.linalg", "scipy is imported outside a function"),
    ],
)
def test_a_forbidden_import_is_found(module, source, problem):
    """The check above can fail: each of these is one line of wrong code."""
    assert any(problem in found for found in import_problems(module, source, {"tokenizer.train"}))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tokenizer.train", "from tokenizer.training.task import TokenizerTask\nfrom engine.loop import fit"),
        ("autoregressive.train", "from tokenizer import load_tokenizer"),
        ("evaluations.x", "from tokenizer.frozen.lite0 import lite0_features\ndef f():\n    import scipy.linalg"),
        ("tokenizer.models.x", "from tokenizer.quantizers.base import Quantized\nimport json"),
    ],
)
def test_an_allowed_import_is_not_found(module, source):
    assert import_problems(module, source, {"tokenizer.train"}) == []


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("x = 1", "has no docstring"),
        ("try:\n    f()\nexcept:\n    raise", "bare except"),
        ("try:\n    f()\nexcept ValueError:\n    pass", "swallowed"),
        ("x = eval('1')", "eval()"),
        ("exec('x = 1')", "exec()"),
        ("subprocess.run('ls', shell=True)", "runs text as code"),
        ("torch.load(path, weights_only=True)", "unpickles"),
        ("torch.load(path, weights_only=False)", "unpickles"),
        ("temporary.replace(path)", "renames: use atomic_file"),
        ("temporary.rename(path)", "renames: use atomic_file"),
        ("os.replace(temporary, path)", "renames: use atomic_file"),
        ("import pickle", "pickle is imported"),
        ("import pickletools", "pickletools is imported"),
        ("from dill import load", "dill is imported"),
        ("pickle.load(file)", "unpickles"),
        ("np.load(path, allow_pickle=True)", "unpickles"),
        ("torch.jit.load(path)", "runs a program"),
        ("torch.hub.load_state_dict_from_url(url)", "unpickles"),
        ("yaml.load(text)", "builds objects"),
        ("yaml.unsafe_load(text)", "builds objects"),
        ("yaml.full_load_all(text)", "builds objects"),
        ("torch.cuda.synchronize()", "CUDA"),
        ("x.cuda()", "CUDA"),
    ],
)
def test_forbidden_code_is_found(source, problem):
    assert any(problem in found for found in code_problems("engine.x", source))


def test_ordinary_code_is_not_found():
    calls = (
        "model.eval()",
        "read_checkpoint(p)",
        're.compile("x")',
        "np.load(p, allow_pickle=False)",
        "yaml.safe_load(t)",
    )
    source = "\n".join(['"""Doc."""', *calls])
    assert code_problems("engine.x", source) == []

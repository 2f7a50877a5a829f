"""Which module each script runs, read from the scripts themselves: the one place where tests know it."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

MODULE = r"((?:tokenizer|autoregressive|evaluations)[\w.]+)"
LAUNCHED = re.compile(rf'^(?:exec .* -m|run_pipeline) {MODULE} "', re.MULTILINE)
LAUNCHED_BY_FLAG = re.compile(rf"^launch_by_flag (--[\w-]+) {MODULE} {MODULE} ", re.MULTILINE)


@dataclass(frozen=True)
class ScriptModules:
    """The module that a script runs, and where a flag picks another one, that flag and the other module."""

    module: str
    flag: str = ""
    module_with_flag: str = ""

    def picked(self, arguments: list[str]) -> str:
        """The module that the script runs with these arguments."""
        return self.module_with_flag if self.flag in arguments else self.module


def script_modules() -> dict[str, ScriptModules]:
    """{script without `.sh`: its modules}, of the scripts that run one."""
    modules = {}
    for path in sorted((ROOT / "scripts").glob("*.sh")):
        text = path.read_text(encoding="utf-8")
        if found := LAUNCHED_BY_FLAG.search(text):
            flag, with_flag, without_flag = found.groups()
            modules[path.stem] = ScriptModules(without_flag, flag, with_flag)
        elif found := LAUNCHED.search(text):
            modules[path.stem] = ScriptModules(found[1])
    return modules

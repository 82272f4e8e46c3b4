"""The rules of the rooms, read from the code: exact for imports, a tripwire for effects."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

BELOW_STAGES = ("core", "models", "ports", "data", "objectives", "sampling", "training", "evals")
MAY_IMPORT = {
    "core": (),
    "models": ("core",),
    "ports": ("core",),
    "data": ("core",),
    "objectives": ("core", "models"),
    "sampling": ("core", "models"),
    "training": ("core",),
    "evals": ("core", "ports"),
    "stages": BELOW_STAGES,
    "recipes": ("stages",),
    "serve": ("core", "stages"),
    "cli": ("core", "recipes", "stages", "serve"),
}
# A recipe is numbers: of the rooms below stages it may name the classes that hold numbers, and nothing else.
CONFIG_ENDINGS = ("Config", "Knob", "Knobs")

NO_FILES = ("models", "objectives", "sampling", "evals", "recipes")
READ_ONLY = ("ports",)
ONLY_IN = {
    "transformers": ("ports", "stages"),
    "tyro": ("cli", "stages", "recipes"),
    "fastapi": ("serve",),
    "starlette": ("serve",),
    "uvicorn": ("serve",),
    "prometheus_client": ("serve",),
    "ray": ("stages",),
}
NOWHERE = (
    *(
        "pdb",
        "ipdb",
        "pickle",
        "_pickle",
        "cPickle",
        "dill",
        "cloudpickle",
        "joblib",
        "marshal",
        "shelve",
        "yaml",
    ),
    *("torchvision", "timm", "xformers", "flash_attn", "mmcv", "mmdet", "bitsandbytes"),
)
WRITES = (
    *(
        "write_text",
        "write_bytes",
        "mkdir",
        "unlink",
        "rmdir",
        "touch",
        "rename",
        "symlink_to",
        "hardlink_to",
    ),
    *("save_file", "save_pretrained", "savez", "savez_compressed", "tofile"),
)
READS = ("read_text", "read_bytes", "safe_open", "load_file", "from_pretrained", "fromfile", "memmap")
OS_WRITES = (
    "remove",
    "rename",
    "replace",
    "unlink",
    "mkdir",
    "makedirs",
    "rmdir",
    "open",
    "truncate",
    "symlink",
    "link",
)
FILE_MODULES = ("shutil", "tempfile", "tarfile", "zipfile")
# How weights lie over ranks is training's; what ranks tell each other is core's.
PLACEMENT = ("torch.distributed.fsdp", "torch.distributed.tensor", "torch.distributed.device_mesh")
ARTIFACTS = ("open_artifact", "begin_artifact")
# The one place that opens a file of torch.save, by the unpickler that runs nothing.
LOADS = ("torch.load", "torch.serialization.load")
LOADER = "ports/released_file.py"
# The one place that goes on after any exception: a picture that failed must not end the service of others.
CATCHER = "serve/batches.py"
BUILTINS = ("breakpoint", "eval", "exec", "__import__", "print", "hasattr", "input")
TORCH_DRAWS = ("rand", "randn", "randint", "randperm", "multinomial", "bernoulli", "normal", "poisson")
NUMPY_KEYED = ("Generator", "PCG64", "Philox", "SeedSequence", "default_rng")


def violations(source: str, room: str, *, package_root: bool = False, name: str = "") -> list[str]:
    """What a module (`name` in the package) of the room breaks, each as `line: what`."""
    tree = ast.parse(source)
    found = [*_imports(tree, room, package_root), *_effects(tree, room)]
    found += _anywhere(tree, room, may_catch=name == CATCHER)
    found += _loads(tree, is_loader=name == LOADER)
    return [f"{line}: {what}" for line, what in sorted(found)]


def _imports(tree: ast.Module, room: str, package_root: bool) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _import(node.lineno, alias.name, None, room, package_root)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "relative import"
                continue
            for alias in node.names:
                yield from _import(node.lineno, node.module or "", alias.name, room, package_root)


def _import(
    line: int, module: str, name: str | None, room: str, package_root: bool
) -> Iterator[tuple[int, str]]:
    top = module.partition(".")[0]
    if name == "*":
        yield line, f"import of everything from {module}"
    if top in NOWHERE or module == "torch.distributed" and room != "core":
        yield line, f"import of {module}"
    distributed = module.startswith("torch.distributed.") or (module == "torch" and name == "distributed")
    if distributed and room != "core" and not (room == "training" and module in PLACEMENT):
        yield line, "import of torch.distributed outside core"
    if top in ONLY_IN and room not in ONLY_IN[top]:
        yield line, f"import of {top} outside {' and '.join(ONLY_IN[top])}"
    if room != "core" and (module == "random" or module == "os" and name in ("environ", "getenv")):
        yield line, f"import of {f'{module}.{name}' if name else module} outside core"
    if top in FILE_MODULES and room in NO_FILES:
        yield line, f"import of {top} in a room without files"
    if top != "lightgen" or package_root:
        return
    parts = [*module.split("."), *([name] if name else [])]
    target = parts[1] if len(parts) > 1 else ""
    if target not in MAY_IMPORT:
        yield line, f"import of {'.'.join(parts)}: name the module that holds it"
    elif target != room and target not in MAY_IMPORT[room]:
        is_config = room == "recipes" and target in BELOW_STAGES and len(parts) > 3 and name is not None
        if not (is_config and name.endswith(CONFIG_ENDINGS)):
            yield line, f"{room} imports {'.'.join(parts)}"


def _effects(tree: ast.Module, room: str) -> Iterator[tuple[int, str]]:
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        chain = _chain(call.func)
        last = chain.rpartition(".")[2]
        is_read = last in ("open", *READS, *ARTIFACTS) or chain in ("np.load", "numpy.load")
        if room in NO_FILES and is_read:
            yield call.lineno, f"{last}() in a room without files"
        if room in NO_FILES + READ_ONLY:
            if last == "open" and any(_is_write_mode(_text(each)) for each in _arguments(call)):
                yield call.lineno, f"open() to write in {room}"
            if last in WRITES or last == "begin_artifact" or chain in ("np.save", "numpy.save", "torch.save"):
                yield call.lineno, f"{last}() in {room}"
            if chain in [f"os.{name}" for name in OS_WRITES]:
                yield call.lineno, f"{chain}() in {room}"


def _anywhere(tree: ast.Module, room: str, *, may_catch: bool) -> Iterator[tuple[int, str]]:
    forked = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        and any(_chain(item.context_expr).endswith("random.fork_rng") for item in node.items)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            chain = _chain(node)
            if room != "core" and (
                chain in ("os.environ", "os.getenv") or chain.startswith("torch.distributed.")
            ):
                yield node.lineno, f"{chain} outside core"
        elif isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            broad = any(each is None or _chain(each) in ("Exception", "BaseException") for each in caught)
            if broad and not may_catch and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node)):
                yield node.lineno, "an except clause that swallows everything"
        elif isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle", "shell"):
            yield node.value.lineno, f"argument {node.arg}"
        elif isinstance(node, ast.Constant) and node.value == "trust_remote_code":
            yield node.lineno, "trust_remote_code"
        elif isinstance(node, ast.Call):
            yield from _call(node, room, forked=id(node) in forked)


def _loads(tree: ast.Module, *, is_loader: bool) -> Iterator[tuple[int, str]]:
    """Ways to unpickle, but the one: literally `torch.load(..., weights_only=True)` in LOADER."""
    fine = set()
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        named = {keyword.arg: keyword.value for keyword in call.keywords}
        safe = named.get("weights_only")
        if is_loader and None not in named and isinstance(safe, ast.Constant) and safe.value is True:
            fine.add(id(call.func))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("torch", "torch.serialization"):
            for alias in node.names:
                if f"torch.{alias.name}" in ("torch.load", "torch.serialization", "torch.add_safe_globals"):
                    yield node.lineno, f"import of {node.module}.{alias.name}"
        elif isinstance(node, ast.Attribute) and _chain(node) in LOADS and id(node) not in fine:
            yield node.lineno, f"{_chain(node)} other than with weights_only=True in {LOADER}"
        elif isinstance(node, ast.Attribute) and node.attr == "add_safe_globals" and not is_loader:
            yield node.lineno, "add_safe_globals for all that comes after"


def _call(call: ast.Call, room: str, *, forked: bool) -> Iterator[tuple[int, str]]:
    chain = _chain(call.func)
    first, _, last = chain.rpartition(".")
    if isinstance(call.func, ast.Name) and chain in BUILTINS:
        yield call.lineno, f"{chain}()"
    if chain == "getattr" and len(call.args) == 3:
        yield call.lineno, "getattr() with a default"
    if isinstance(call.func, ast.Attribute) and call.func.attr in ("cuda", "set_trace"):
        yield call.lineno, f".{call.func.attr}()"
    if chain in ("torch.save", "os.system", "os.popen", "torch.hub.load"):
        yield call.lineno, f"{chain}()"
    if room == "core":
        return
    named = {keyword.arg for keyword in call.keywords}
    if first == "torch" and last in TORCH_DRAWS and "generator" not in named:
        yield call.lineno, f"{chain}() without a generator"
    if first == "torch" and last in ("rand_like", "randn_like", "randint_like") or last == "manual_seed_all":
        yield call.lineno, f"{chain}() draws from the global state"
    if chain in ("torch.manual_seed", "torch.seed") and not forked:
        yield call.lineno, f"{chain}() outside torch.random.fork_rng"
    if first in ("np.random", "numpy.random") and last not in NUMPY_KEYED:
        yield call.lineno, f"{chain}() draws from the global state"


def _chain(node: ast.AST | None) -> str:
    """Dotted name of an expression such as `a.b.c` or of what it calls; unnamed parts are empty."""
    if isinstance(node, ast.Call):
        return _chain(node.func)
    if isinstance(node, ast.Attribute):
        return f"{_chain(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _arguments(call: ast.Call) -> list[ast.expr]:
    """Arguments of open() that may be its mode: any but the file name of the builtin."""
    positional = call.args[1:] if isinstance(call.func, ast.Name) else call.args
    return [*positional, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]


def _is_write_mode(text: str) -> bool:
    return set(text) <= set("rwaxbt+") and bool(set(text) & set("wax+"))


def _text(node: ast.AST | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def package_init_violations(source: str) -> list[str]:
    """What an `__init__.py` of a room holds beyond its docstring."""
    body = ast.parse(source).body
    is_docstring = [isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body]
    return [
        f"{node.lineno}: code in __init__" for node, fine in zip(body, is_docstring, strict=True) if not fine
    ]


MODULES = sorted((ROOT / "lightgen").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_module_keeps_the_rules(path):
    parts = path.relative_to(ROOT / "lightgen").parts
    source = path.read_text(encoding="utf-8")
    if len(parts) == 1:
        assert parts == ("__init__.py",), "only __init__.py lies outside the rooms"
        assert violations(source, "cli", package_root=True) == []
        return
    assert parts[0] in MAY_IMPORT, f"{parts[0]} is no room"
    assert violations(source, parts[0], name="/".join(parts)) == []
    if parts[-1] == "__init__.py" and parts != ("recipes", "__init__.py"):
        assert package_init_violations(source) == []


FLAGGED = [
    # the table of imports
    *(
        (room, f"from lightgen.{other}.thing import Thing")
        for room, allowed in MAY_IMPORT.items()
        for other in MAY_IMPORT
        if other != room and other not in allowed
    ),
    ("models", "import lightgen.ports.nano.world"),
    ("models", "from lightgen import ports"),
    ("models", "def late():\n    from lightgen.data.order import sample_ids"),
    ("stages", "from lightgen import LightGenPipeline"),
    ("stages", "import lightgen"),
    ("recipes", "from lightgen.models.transformer import Transformer"),
    ("recipes", "from lightgen.models import TransformerConfig"),
    ("recipes", "import lightgen.models.transformer"),
    ("recipes", "from lightgen.cli.main import MainConfig"),
    ("core", "from .errors import UserError"),
    ("core", "from . import errors"),
    ("core", "from os.path import *"),
    # foreign libraries
    ("models", "import transformers"),
    ("models", "from transformers.models.t5 import T5EncoderModel"),
    ("stages", "import fastapi"),
    ("cli", "import uvicorn"),
    ("core", "import prometheus_client"),
    ("stages", "import torchvision.transforms"),
    ("stages", "from timm import create_model"),
    # files
    ("models", "open('x')"),
    ("objectives", "Path('x').open()"),
    ("sampling", "Path('x').read_text()"),
    ("evals", "Path('x').write_text('')"),
    ("recipes", "Path('x').write_bytes(b'')"),
    ("models", "Path('x').mkdir()"),
    ("models", "Path('x').unlink()"),
    ("models", "os.replace('a', 'b')"),
    ("models", "os.remove('a')"),
    ("models", "import shutil"),
    ("models", "from tempfile import mkdtemp"),
    ("evals", "load_file('x.safetensors')"),
    ("evals", "open_artifact('x')"),
    ("models", "np.load('x')"),
    ("ports", "open('x', 'w')"),
    ("ports", "open('x', mode='ab')"),
    ("ports", "Path('x').open('r+')"),
    ("ports", "Path('x').write_bytes(b'')"),
    ("ports", "os.makedirs('x')"),
    ("ports", "begin_artifact('x', 'images', {}, [])"),
    ("ports", "model.save_pretrained('x')"),
    # environment and processes
    ("stages", "import os\nos.environ['A']"),
    ("ports", "os.environ.get('A')"),
    ("ports", "os.getenv('A')"),
    ("cli", "from os import environ"),
    ("cli", "from os import getenv"),
    ("training", "torch.distributed.all_reduce(x)"),
    ("training", "import torch.distributed as dist"),
    ("training", "from torch import distributed"),
    ("training", "from torch.distributed import all_reduce"),
    ("stages", "from torch.distributed.fsdp import fully_shard"),
    ("core", "subprocess.run('ls', shell=True)"),
    ("core", "os.system('ls')"),
    # danger anywhere
    *(
        (room, source)
        for room in ("core", "stages", "cli")
        for source in (
            "model.cuda()",
            "make().cuda()",
            "breakpoint()",
            "import pdb",
            "from pdb import set_trace",
            "import pickle",
            "from pickle import loads",
            "import yaml",
            "torch.load('x')",
            "torch.load('x', weights_only=True)",
            "torch.serialization.load('x', weights_only=True)",
            "load = torch.load",
            "from torch import load",
            "from torch.serialization import load",
            "torch.serialization.add_safe_globals([Namespace])",
            "eval('1')",
            "exec('1')",
            "__import__('os')",
            "print('x')",
            "Model.load('x', trust_remote_code=False)",
            "Model.load('x', **{'trust_remote_code': True})",
            "np.load('x', allow_pickle=True)",
            "hasattr(x, 'y')",
            "getattr(x, 'y', None)",
            "try:\n    f()\nexcept Exception:\n    pass",
            "try:\n    f()\nexcept:\n    pass",
            "try:\n    f()\nexcept (ValueError, Exception):\n    pass",
        )
    ),
    # randomness
    ("data", "import random"),
    ("data", "from random import shuffle"),
    ("models", "torch.randn(3)"),
    ("models", "torch.randn_like(x)"),
    ("models", "torch.randperm(3)"),
    ("stages", "torch.manual_seed(0)"),
    ("stages", "torch.cuda.manual_seed_all(0)"),
    ("stages", "np.random.seed(0)"),
    ("ports", "numpy.random.rand(3)"),
]


@pytest.mark.parametrize(("room", "source"), FLAGGED)
def test_the_checker_sees(room, source):
    assert violations(source, room), f"{room}: {source!r} passed"


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        ", weights_only=False",
        ", weights_only=None",
        ", weights_only=1",
        ", weights_only=safe",
        ", **{'weights_only': False}",
        ", weights_only=True, **more",
    ],
)
def test_only_weights_are_ever_unpickled_and_in_one_place(arguments):
    assert violations(f"torch.load('x'{arguments})", "ports", name=LOADER)
    allowed = "torch.load('x', mmap=True, weights_only=True)"
    assert violations(allowed, "ports", name=LOADER) == []
    assert violations(allowed, "ports", name="ports/other.py")
    assert (ROOT / "lightgen" / LOADER).is_file()


ALLOWED = [
    *(
        (
            room,
            f"from lightgen.{other}.a import A\nimport lightgen.{other}.a\nfrom lightgen import {other}",
        )
        for room, allowed in MAY_IMPORT.items()
        for other in (*allowed, room)
    ),
    (
        "recipes",
        "from lightgen.models.transformer import TransformerConfig\nfrom lightgen.core.x import ErrorKnob",
    ),
    ("models", "model.eval()\nre.compile('x')\ntext.replace('a', 'b')\ndataclasses.replace(config, width=1)"),
    ("models", "torch.randn(3, generator=random)\nx.normal_(generator=random)"),
    ("models", "with torch.random.fork_rng(devices=[]):\n    torch.manual_seed(0)"),
    ("models", "from diffusers import ModelMixin\nimport torch.nn.functional as F"),
    ("ports", "import transformers\nopen('x')\nopen('x', 'rb')\nPath('x').read_bytes()\nload_file('x')"),
    ("ports", "from lightgen.core.config import environment\nenvironment('LIGHTGEN_EMOJI_FONT')"),
    ("data", "open('x', 'wb')\nimport shutil\nPath('x').unlink()"),
    ("core", "os.environ.get('A')\ntorch.distributed.barrier()\nimport random"),
    ("core", "try:\n    f()\nexcept BaseException:\n    undo()\n    raise"),
    ("stages", "np.random.default_rng(3)\nx: np.random.Generator"),
    ("cli", "getattr(module, name)"),
    ("serve", "import fastapi, starlette.requests, uvicorn\nfrom prometheus_client import Counter"),
]


@pytest.mark.parametrize(("room", "source"), ALLOWED)
def test_the_checker_lets_pass(room, source):
    assert violations(source, room) == []


def test_everything_is_caught_in_one_place_alone():
    source = "try:\n    f()\nexcept Exception:\n    log()"
    assert violations(source, "serve", name=CATCHER) == []
    assert violations(source, "serve", name="serve/worker.py")
    assert (ROOT / "lightgen" / CATCHER).is_file()


def test_an_init_with_code_is_seen():
    assert package_init_violations('"""Doc."""\n') == []
    assert package_init_violations('"""Doc."""\nfrom lightgen.core.draws import draw_key\n')
    assert package_init_violations("x = 1\n")

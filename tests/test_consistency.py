"""What must say the same in several places does."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from functools import cache, partial
from pathlib import Path

import chapters
import jupytext
import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import fpmc
from tests.notebooks.regenerate import stored

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@cache
def written(chapter):
    """The cells of a chapter."""
    return jupytext.read(chapter).cells


@cache
def kept(chapter):
    """The cells of a chapter's stored notebook."""
    return nbformat.read(stored(chapter), 4).cells


def pins():
    """The versions of requirements.lock by normalised name."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    lines = (line.split(";")[0].strip() for line in lines if not line.startswith("#"))
    pairs = (line.split("==") for line in lines if line)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}


SIMULATOR = "maze"
"""The extra that makes one dataset. It is large, and nothing that is tested or built needs it."""


def requirements():
    """Every requirement of pyproject.toml that the lock has, of all extras but the simulator."""
    extras = [
        group for name, group in PROJECT["optional-dependencies"].items() if name != SIMULATOR
    ]
    return [Requirement(text) for group in (PROJECT["dependencies"], *extras) for text in group]


class TestEnvironments:
    """pyproject.toml has ranges, requirements.lock exact versions, environment.yml the same."""

    @pytest.mark.parametrize("requirement", requirements(), ids=str)
    def test_the_lock_satisfies_every_range(self, requirement):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert requirement.specifier.contains(pins()[name])

    def test_the_simulator_is_an_extra_of_its_own_with_both_bounds(self):
        (only,) = map(Requirement, PROJECT["optional-dependencies"][SIMULATOR])
        assert {part.operator for part in only.specifier} == {">=", "<"}
        assert only.name not in pins()

    def test_the_lock_pins_what_the_project_is_built_on(self):
        assert pins()["torch"] == "2.13.0"
        assert pins()["torchvision"] == "0.28.0"
        assert pins()["jupyter-book"].startswith("1.0.")

    def test_conda_installs_the_lock(self):
        environment = yaml.safe_load((ROOT / "environment.yml").read_text())
        *packages, by_pip = environment["dependencies"]
        assert "-r requirements.lock" in by_pip["pip"]
        assert "-e ." in by_pip["pip"]
        python = next(p.split("=")[1] for p in packages if p.startswith("python="))
        assert SpecifierSet(PROJECT["requires-python"]).contains(f"{python}.0")

    def test_the_make_file_and_the_workflow_install_the_lock(self):
        assert "-r requirements.lock" in (ROOT / "Makefile").read_text()
        workflow = yaml.safe_load((ROOT / ".github/workflows/book.yml").read_text())
        commands = [step.get("run") for step in workflow["jobs"]["book"]["steps"]]
        assert "make book" in commands
        assert "make test" in commands

    def test_what_is_imported_is_declared(self):
        declared = {re.sub(r"[-_.]+", "_", r.name).lower() for r in requirements()}
        named = {"pil": "pillow", "sklearn": "scikit_learn", "skimage": "scikit_image"}
        named |= {"matplotlib_inline": "ipykernel"}
        for file in (ROOT / "fpmc").rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                modules = (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module]
                    if isinstance(node, ast.ImportFrom)
                    else []
                )
                for module in {m.split(".")[0].lower() for m in modules}:
                    if module not in sys.stdlib_module_names and module != "fpmc":
                        assert named.get(module, module) in declared, f"{file}: {module}"

    @pytest.mark.parametrize("missing", ["torchvision", "triton"])
    def test_nothing_on_the_default_path_needs_what_is_not_everywhere(self, missing):
        modules = "fpmc, fpmc.plotting, fpmc.run, fpmc.engine.cuda"
        code = f"import sys; sys.modules['{missing}'] = None; import {modules}"
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_without_compiled_kernels_the_same_answers_are_streamed(self):
        """The device's own machine may lack numba, and what only other data or downloads need."""
        code = """if True:
            import sys
            sys.modules |= dict.fromkeys(["numba", "llvmlite", "skimage", "pooch"])
            import torch, fpmc
            from fpmc.engine import plan
            from fpmc.engine.cpu import compiled
            source = fpmc.Source(torch.rand(20, 1, 8, 8))
            for denoiser in (fpmc.methods.optimal(source), fpmc.methods.pspc_square(source, 3)):
                assert plan(*denoiser.operators(1.0), source, 2).path == "streaming"
                assert denoiser(torch.zeros(2, 1, 8, 8), 1.0).isfinite().all()
            print(compiled.MISSING)
        """
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "numba cannot be imported" in done.stdout, done.stderr

    def test_importing_the_package_takes_little_more_than_importing_torch(self):
        code = """if True:
            import sys, time
            start = time.process_time()
            import torch
            alone = time.process_time()
            import fpmc
            both = time.process_time()
            import fpmc.experiments.grid  # what each job of a grid begins with
            heavy = {"sklearn", "scipy", "skimage", "numba", "matplotlib", "pooch", "triton"}
            print((both - start) / (alone - start), *heavy & set(sys.modules))
        """
        run = partial(subprocess.run, capture_output=True, text=True, check=True)
        told = (run([sys.executable, "-c", code]).stdout.split() for _ in range(3))
        assert any(float(ratio) < 1.5 and not heavy for ratio, *heavy in told)

    def test_the_version_is_one(self):
        citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
        assert citation["version"] == fpmc.__version__
        assert f"## {fpmc.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("chapter", chapters.chapters(), ids=lambda path: path.stem)
class TestChapters:
    """The book's notebooks."""

    def test_the_stored_notebook_is_up_to_date(self, chapter):
        assert stored(chapter).exists(), f"{stored(chapter)} is missing: run make notebooks"
        ours = [c.source for c in written(chapter) if c.cell_type == "code"]
        theirs = [cell.source for cell in kept(chapter)]
        assert ours == theirs, f"{stored(chapter).name} is out of date: run make notebooks"

    def test_the_stored_notebook_holds_code_and_text_alone(self, chapter):
        for cell in kept(chapter):
            assert cell.cell_type == "code"
            for output in cell.get("outputs", []):
                assert output.output_type in ("stream", "execute_result", "display_data")
                assert set(output.get("data", {})) <= {"text/plain", "text/markdown"}

    def test_the_parameters_are_the_first_code(self, chapter):
        code = [cell for cell in written(chapter) if cell.cell_type == "code"]
        assert "parameters" in code[0].metadata.get("tags", [])

    def test_code_is_short_enough_to_read(self, chapter):
        for cell in written(chapter):
            if cell.cell_type == "code":
                lines = cell.source.splitlines()
                assert max(map(len, lines)) <= 80, cell.source
                assert len(lines) <= 22, cell.source

    def test_something_is_checked(self, chapter):
        cells = written(chapter)
        tags = {tag for cell in cells for tag in cell.metadata.get("tags", [])}
        assert "nbval-check-output" in tags or chapter.stem == "intro"

    def test_what_is_checked_is_not_empty(self, chapter):
        for cell in kept(chapter):
            if "nbval-check-output" in cell.metadata.get("tags", []):
                assert cell.outputs, cell.source

    def test_chapters_use_public_names(self, chapter):
        for cell in written(chapter):
            if cell.cell_type == "code":
                assert not re.search(r"(?<!\w)(?:\w+\.)+_[a-z]", cell.source), cell.source


def modules():
    """All modules of the package."""
    files = sorted((ROOT / "fpmc").rglob("*.py"))
    names = (".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files)
    return [name.removesuffix(".__init__") for name in names]


@pytest.mark.parametrize("name", modules())
def test_public_names_exist_and_are_documented(name):
    if name.startswith("fpmc.engine.cuda."):
        pytest.importorskip("triton")
    module = importlib.import_module(name)
    assert module.__doc__
    for public in getattr(module, "__all__", []):
        thing = getattr(module, public)
        if callable(thing) and getattr(thing, "__module__", "").startswith("fpmc"):
            assert thing.__doc__, f"{name}.{public}"


def test_the_public_names_are_there():
    names = "load Source FPMC edm_sigmas sample mse r2"
    names += " optimal pspc_square pspc_flex ls els lukoianov wiener search_patch_sizes"
    homes = (fpmc, fpmc.data, fpmc.methods, fpmc.diffusion, fpmc.metrics)
    for name in names.split():
        assert any(callable(getattr(home, name, None)) for home in homes), name


def test_the_package_does_not_depend_on_what_uses_it():
    for file in (ROOT / "fpmc").rglob("*.py"):
        text = file.read_text()
        assert not re.search(r"^(?:from|import) (?:tests|book|benchmarks)\b", text, re.M)
        if "engine" in file.parts:
            assert "fpmc.methods" not in text
        if "methods" in file.parts:
            assert "fpmc.engine" not in text


def test_relative_links_of_the_readme_lead_somewhere():
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
            assert target.startswith("http") or (ROOT / target).exists(), f"{page}: {target}"


def test_the_code_is_formatted_and_linted():
    for command in (["check"], ["format", "--check"]):
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout


def test_the_files_under_version_control_are_small_enough_to_clone():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert sum(path.lstat().st_size for path in paths if path.is_file()) < 60 * 2**20


def randomly():
    """The public functions and methods whose seed may be a generator."""
    for path in sorted((ROOT / "fpmc").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                taken = {a.arg: a.annotation for a in (*node.args.args, *node.args.kwonlyargs)}
                if "Generator" in ast.unparse(taken.get("seed") or ast.Constant("")):
                    yield pytest.param(taken, id=f"{path.stem}.{node.name}")


@pytest.mark.parametrize("taken", list(randomly()))
def test_what_takes_a_generator_for_a_seed_takes_it_by_its_name(taken):
    assert ast.unparse(taken["generator"]) == "torch.Generator | None"

"""README and docs: every command runs or says what it needs, every link leads somewhere."""

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.page import PAGE
from bench.page import page as measured_page

ROOT = Path(__file__).parents[1]
PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
}
BLOCKS = [
    block for text in PAGES.values() for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
]
# `# needs Lizard`: as the first line of a block says that nobody can run it on the sample alone
RUN_BY_CI = [block for block in BLOCKS if not block.startswith("# needs ")]
SCRIPT = r"(?:^|bin/)python ((?:bench/|robust/|studies/|transfer/|weak/)?\w+\.py[^#&]*)"
COMMANDS = sorted(
    {
        command.strip()
        for block in BLOCKS
        for line in block.splitlines()
        for command in re.findall(SCRIPT, line)
    }
    | {
        command
        for text in PAGES.values()
        for command in re.findall(
            r"`python ((?:bench/|robust/|studies/|transfer/|weak/)?\w+\.py[^`]*)`", text
        )
    }
)


def test_there_are_commands():
    assert len(COMMANDS) > 25
    assert len(RUN_BY_CI) > 5


@functools.cache
def help_of(script):
    command = [sys.executable, script, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_names_a_script_and_settings_that_exist(command):
    script, *arguments = command.split()
    for flag in re.findall(r"--[\w-]+", " ".join(arguments)):
        assert re.search(rf"{flag}[ ,]", help_of(script)), flag


@pytest.mark.slow
@pytest.mark.long
def test_every_command_runs_as_it_stands_unless_it_says_what_it_needs(tmp_path):
    """In the order of the pages, README first, in a copy of the repository."""
    ignored = shutil.ignore_patterns(".git", ".venv", "workspace", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, tmp_path / "copy", ignore=ignored)
    # a user's own threads: the other long tests are over before these commands are
    variables = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    ran = []
    for block in RUN_BY_CI:
        for line in block.splitlines():
            for command in re.findall(SCRIPT, line):
                arguments = [sys.executable, *shlex.split(command)]
                done = subprocess.run(
                    arguments,
                    cwd=tmp_path / "copy",
                    env=variables,
                    capture_output=True,
                    text=True,
                )
                assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
                ran.append(command.split()[0])
    assert {"main.py", "predict.py", "test.py", "studies/figure4.py"} <= set(ran)
    report = "workspace/sample/reports/unet_tu-resnet10t/index.html"
    assert (tmp_path / "copy" / report).exists()  # as the README says
    assert (tmp_path / "copy" / "nuclei" / "sample_2_nuclei.geojson").exists()


def test_what_a_block_needs_is_one_of_few_things():
    needs = {block.splitlines()[0] for block in BLOCKS if block.startswith("# needs ")}
    assert needs == {
        "# needs Lizard",
        "# needs your images and masks",
        "# needs a task of the Medical Segmentation Decathlon",
        "# needs pip install onnx onnxscript onnxruntime",
        "# needs an account on the Hugging Face Hub",
        "# needs SLURM",
        "# needs a quiet machine for an hour",
        "# needs several GPUs",
        '# needs pip install "dask[distributed]"',
    }


def test_ci_runs_the_test_command_of_the_readme():
    (command,) = (line for block in BLOCKS for line in block.splitlines() if "pytest" in line)
    assert command in (ROOT / ".ci" / "run").read_text()


def test_every_file_of_the_picture_exists():
    (tree,) = re.findall(r"```text\n(config\.py.*?)```", PAGES[ROOT / "README.md"], re.DOTALL)
    names = re.findall(r"^(\S+)", tree, re.MULTILINE)
    assert len(names) > 12
    for name in names:
        assert (ROOT / name).exists(), name
    assert {path.name for path in ROOT.glob("*.py")} <= set(names)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(page):
    for target, heading in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", PAGES[page]):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings]
            assert heading in anchors, heading


def test_every_page_is_listed_in_the_readme():
    for page in PAGES:
        assert page.name == "README.md" or f"docs/{page.name}" in PAGES[ROOT / "README.md"]


def test_the_page_on_performance_says_what_the_benchmarks_measured():
    """A figure that is changed by hand, or measured anew and not written down, shows here."""
    assert PAGES[PAGE] == measured_page()

"""README and docs: every command runs or says what it needs, every link leads somewhere."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.page import tables
from tests.conftest import ROOT

PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
}
BLOCKS_OF = {
    path.name: re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for path, text in PAGES.items()
}
LINES = [line for of in BLOCKS_OF.values() for block in of for line in block.splitlines()]
APART = ["weak.md"]  # pages whose commands use nothing that those of others made
NAME = r"python ((?:bench/|robust/|studies/|weak/)?\w+\.py"
SCRIPT = rf"(?:^|bin/){NAME}[^#&]*)"
COMMANDS = sorted(
    {command.strip() for line in LINES for command in re.findall(SCRIPT, line)}
    | {command for text in PAGES.values() for command in re.findall(rf"`{NAME}[^`]*)`", text)}
)


@pytest.mark.parametrize("script", sorted({command.split()[0] for command in COMMANDS}))
def test_every_command_names_a_script_and_settings_that_exist(run_script, script):
    done = run_script(script, "--help")
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        if command.split()[0] == script:
            for flag in re.findall(r"--[\w-]+", command):
                assert re.search(rf"{flag}[ ,]", done.stdout), command


def run_pages(names, folder):
    """Run the commands of some pages in a copy of the repository; return it and the scripts.

    `# needs Lizard`, as the first line of a block, says that nobody can run it on the sample alone.
    """
    ignored = shutil.ignore_patterns(".git", ".venv", "workspace", "__pycache__", ".*_cache")
    copy, ran = Path(shutil.copytree(ROOT, folder / "copy", ignore=ignored)), []
    blocks = [block for name in names for block in BLOCKS_OF[name]]
    run = [block for block in blocks if not block.startswith("# needs ")]
    lines = [line for block in run for line in block.splitlines()]
    for command in (command for line in lines for command in re.findall(SCRIPT, line)):
        arguments = [sys.executable, *shlex.split(command)]
        done = subprocess.run(arguments, cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        ran.append(command.split()[0])
    return copy, ran


@pytest.mark.slow
@pytest.mark.long
def test_every_command_runs_as_it_stands_unless_it_says_what_it_needs(tmp_path):
    """In the order of the pages, README first."""
    copy, ran = run_pages([name for name in BLOCKS_OF if name not in APART], tmp_path)
    assert {"main.py", "predict.py", "test.py", "studies/paper.py"} <= set(ran)
    report = "workspace/sample/reports/unet_tu-resnet10t/index.html"
    assert (copy / report).exists()  # as the README says
    assert (copy / "nuclei" / "sample_2_nuclei.geojson").exists()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("page", APART)
def test_the_commands_of_a_page_run_by_themselves(page, tmp_path):
    _, ran = run_pages([page], tmp_path)
    assert set(ran) == {f"{page.removesuffix('.md')}/main.py"}


def test_ci_runs_the_test_command_of_the_pages():
    (command,) = (line for line in LINES if "pytest" in line)
    assert command in (ROOT / ".ci" / "run").read_text()


def test_every_file_that_the_readme_names_exists_and_every_script_is_named():
    readme = PAGES[ROOT / "README.md"]
    (tree,) = re.findall(r"```text\n(config\.py.*?)```", readme, re.DOTALL)
    names = re.findall(r"^(\S+)", tree, re.MULTILINE)
    assert len(names) > 8
    scripts = set(re.findall(r"\w+\.py", tree)) | set(re.findall(r"^\| `(\w+\.py)`", readme, re.M))
    assert {path.name for path in ROOT.glob("*.py")} == scripts
    for name in names:
        assert (ROOT / name).exists(), name


def test_every_picture_exists_is_described_and_is_small():
    shown = {
        (page.parent / target).resolve(): words
        for page, text in PAGES.items()
        for words, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text)
    }
    assert set(shown) == set((ROOT / "docs" / "figures").iterdir())
    assert all(len(words) > 20 for words in shown.values())
    sizes = [path.stat().st_size for path in shown]
    assert max(sizes) < 300_000
    assert sum(sizes) < 1_500_000


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_page_is_listed_in_the_readme_and_its_links_lead_to_files_and_headings(page):
    assert page.name == "README.md" or f"docs/{page.name}" in PAGES[ROOT / "README.md"]
    for target, heading in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", PAGES[page]):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings]
            assert heading in anchors, heading


def test_the_page_on_performance_says_what_the_benchmarks_measured():
    """A figure that is changed by hand, or measured again and not written down, shows here."""
    for table in tables():
        assert table in PAGES[ROOT / "docs" / "performance.md"]

"""The README: its commands name files and settings that exist, and CI runs its test command."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = sorted(
    {
        command
        for block in BLOCKS
        for line in block.splitlines()
        for command in re.findall(r"(?:^|bin/)python ((?:bench/|studies/)?\w+\.py[^#&]*)", line)
    }
)


def test_there_are_commands():
    assert len(COMMANDS) > 8


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_names_a_script_and_settings_that_exist(command):
    script, *arguments = command.split()
    done = subprocess.run(
        [sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for flag in re.findall(r"--\w+", " ".join(arguments)):
        assert f"{flag} " in done.stdout or f"{flag}," in done.stdout, flag


def test_ci_runs_the_test_command_of_the_readme():
    (command,) = (line for block in BLOCKS for line in block.splitlines() if "pytest" in line)
    assert command in (ROOT / ".ci" / "run").read_text()


def test_every_file_of_the_picture_exists():
    (tree,) = re.findall(r"```text\n(config\.py.*?)```", README, re.DOTALL)
    names = re.findall(r"^(\S+)", tree, re.MULTILINE)
    assert len(names) > 12
    for name in names:
        assert (ROOT / name).exists(), name


def test_links_lead_to_files():
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target

"""`pip install .`: the attacks alone; and the ten lines of docs/robustness.md."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT, run_program

LINES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "robustness.md").read_text(), re.S)[0]


def test_the_lines_of_the_page_attack_networks_of_smp_and_of_monai(tmp_path, monkeypatch, capsys):
    assert len([line for line in LINES.splitlines() if line.strip()]) <= 12
    monkeypatch.chdir(tmp_path)
    exec(compile(LINES, "docs/robustness.md", "exec"), {"__name__": "lines"})
    said = capsys.readouterr().out
    assert said.count("worst_case_greedy |") == 2
    assert list((tmp_path / "parts").glob("*.pt"))


def test_the_attacks_import_nothing_but_torch_numpy_and_tqdm():
    """With the modules of all else hidden: those of their own dependencies are found by them."""
    run_program(
        "import sys, torch, numpy, tqdm\n"
        "before = set(sys.modules)\n"
        "import medood.attacks\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert not new - {'medood', *sys.stdlib_module_names, 'torch', 'numpy', 'tqdm'}, new"
    )


@pytest.mark.slow
@pytest.mark.long
def test_the_lines_run_in_an_empty_environment_after_pip_install(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", ROOT], check=True)
    program = "import medood.attacks, sys; assert 'config' not in sys.modules"
    subprocess.run([python, "-c", program], cwd=tmp_path, check=True)
    libraries = ["segmentation-models-pytorch", "monai"]
    subprocess.run([python, "-m", "pip", "install", "-q", *libraries], check=True)
    done = subprocess.run([python, "-c", LINES], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("worst_case_greedy |") == 2

"""What the documentation says is true: the README's example runs, its commands exist, its links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
GROUPS = ("device", "plan", "data", "task", "population", "release", "authority", "attest", "privacy", "compression")
ALONE = ("demo", "simulate", "compare", "sweep", "serve", "init")
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")]


def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (code,) = re.findall(r"```python\n(# my_recipe.*?)```", README, re.DOTALL)
    (tmp_path / "my_recipe.py").write_text(code)
    command = [sys.executable, "-m", "covey", "simulate", "./my_recipe.py", "--rounds", "5", "--workers", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ +5 +\d\d\.\d %", done.stdout, re.MULTILINE), done.stdout


def test_the_application_is_the_example_and_short():
    (code,) = re.findall(r"```python\n(import sys.*?)```", README, re.DOTALL)
    assert (ROOT / "examples" / "join.py").read_text().endswith('"""\n\n' + code) and code.count("\n") < 25


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_command_of_the_readme_exists():
    shown = {tuple(m.split()) for m in re.findall(rf"covey ((?:{'|'.join(GROUPS)}) \w+|{'|'.join(ALONE)})", README)}
    assert {("device", "run"), ("device", "fill"), ("serve",), ("init",), ("simulate",), ("data", "fetch")} <= shown
    for words in shown:
        done = subprocess.run([sys.executable, "-m", "covey", *words, "--help"], capture_output=True, text=True)
        assert done.returncode == 0, words


def test_every_option_of_the_readme_exists():
    for line in re.findall(r"^    (covey .*(?:\\\n.*)?)$", README, re.MULTILINE):
        words = line.replace("\\\n", " ").split("#")[0].split()[1:]
        command = words[: 2 if words[0] in GROUPS else 1]
        text = subprocess.run(
            [sys.executable, "-m", "covey", *command, "--help"], capture_output=True, text=True
        ).stdout
        for option in (w for w in words if w.startswith("--")):
            assert option in text, (command, option)


def test_every_public_module_says_what_it_is_for():
    for path in (ROOT / "src" / "covey").rglob("*.py"):
        assert path.read_text().lstrip().startswith(('"""', "'''")), path


def test_the_protocol_names_every_message_and_every_route():
    from covey.wire import messages

    spec = (ROOT / "src" / "covey" / "wire" / "SPEC.md").read_text()
    for name in vars(messages):
        kind = getattr(messages, name)
        if isinstance(kind, type) and name[0].isupper() and hasattr(kind, "__struct_fields__"):
            for field in kind.__struct_fields__:
                assert name == "ErrorBody" or re.search(rf"{name}\b[^\n]*(\n {{10,}}[^\n]*)*\b{field}:", spec), (
                    name,
                    field,
                )
    for module in ("http", "admin", "operations"):
        source = (ROOT / "src" / "covey" / "server" / f"{module}.py").read_text()
        for route in re.findall(r'Route\(f?"([^"]+)"', source):
            # The administrator's routes begin with the population's, which is spelt out once.
            assert route.removeprefix("{population}").replace("{{task}}", "{task}") in spec, route

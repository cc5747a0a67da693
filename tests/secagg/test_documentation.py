"""What the documentation of secure aggregation says is true."""

import re
from pathlib import Path

from covey import secagg
from covey.secagg import messages

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "secure-aggregation.md").read_text()
SPEC = (ROOT / "src" / "covey" / "secagg" / "SPEC.md").read_text()


def test_the_ten_lines_run():
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    exec(compile(code, "docs/secure-aggregation.md", "exec"), {})


def test_the_methods_that_the_guide_names_exist():
    for who, method in re.findall(r"`(party|server)\.(\w+)", GUIDE):
        assert hasattr({"party": secagg.Party, "server": secagg.Server}[who], method) or method == "step", method


def test_the_specification_names_every_message_with_its_kind():
    kinds = {v.__name__: v.kind for v in vars(messages).values() if hasattr(v, "kind")}
    assert len(kinds) == 9
    for name, kind in kinds.items():
        assert re.search(rf"^\| {kind} \| {name} \|", SPEC, re.MULTILINE), name


def test_every_label_of_the_code_is_in_the_specification():
    for path in (ROOT / "src" / "covey" / "secagg").rglob("*.py"):
        for label in re.findall(r'b"covey secagg 1 ([\w ]+)\\0"', path.read_text()):
            assert f'"covey secagg 1 {label}\\0"' in SPEC, label
        for label in re.findall(r'\.info\(\s*b"([\w ]+)"|pair_info\(\w+, b"([\w ]+)"', path.read_text()):
            assert f'info("{"".join(label)}"' in SPEC, label


def test_every_public_name_has_a_docstring():
    for name in secagg.__all__:
        assert getattr(secagg, name).__doc__, name

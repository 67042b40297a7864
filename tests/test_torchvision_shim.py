from __future__ import annotations

import subprocess
import sys

# Each case is a fresh interpreter, because an import happens once.
PRELUDE = """
import importlib.abc, sys, threading
from semisparse._torchvision import ensure
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, check=False
    )


def test_torchvision_works_after_ensure_from_several_threads() -> None:
    result = run(
        """
threads = [threading.Thread(target=ensure) for _ in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
ensure()
import torch, torchvision
from torchvision.transforms import v2
model = torchvision.models.mobilenet_v3_small(num_classes=3).eval()
print(tuple(model(torch.zeros(1, 3, 32, 32)).shape))
"""
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "(1, 3)"
    assert "Exception in thread" not in result.stderr


def test_a_failed_import_before_is_healed() -> None:
    result = run(
        """
try:
    import torchvision
except RuntimeError:
    pass
ensure()
import torchvision
print(len(torchvision.models.list_models()) > 50)
"""
    )
    assert result.stdout.strip() == "True", result.stderr


def test_other_import_errors_pass_through() -> None:
    result = run(
        """
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torchvision":
            raise error
sys.meta_path.insert(0, Refuse())
for error in (ImportError("on purpose"), RuntimeError("on purpose")):
    try:
        ensure()
    except type(error) as caught:
        print(caught is error)
"""
    )
    assert result.stdout.split() == ["True", "True"], result.stderr

"""Makes torchvision importable beside a torch that its compiled operators do not load into.

torchvision's wheel from PyPI is built against the CUDA build of torch. Beside a CPU build its
extension does not load, and the import then fails as it registers a shape function for an operator
that nobody has declared. None of the models or data sets needs those operators.
"""

from __future__ import annotations

import importlib
import sys
import threading

import torch

_MISSING = "operator torchvision::nms does not exist"
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_lock = threading.Lock()
# A Library withdraws its operators when it is collected.
_library: torch.library.Library | None = None


def ensure() -> None:
    """Import torchvision, declaring its missing operators if that is what the import fails on.

    Calling a declared operator still raises, since it has no kernel. Any other reason for the
    import to fail is passed on. Idempotent and safe to call from several threads.
    """
    global _library
    with _lock:
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            if _MISSING not in str(error):
                raise
        # A failed import leaves its finished submodules behind.
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        if _library is None:
            # torch has annotated neither of the two calls.
            _library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
            for schema in _SCHEMAS:
                _library.define(schema)  # type: ignore[no-untyped-call]
        importlib.import_module("torchvision")

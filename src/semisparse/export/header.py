"""The masks of a model as a C header."""

from __future__ import annotations

import os
import re
from pathlib import Path

from torch import Tensor, nn

from semisparse.errors import ExportError, ModelError
from semisparse.files import writing
from semisparse.layers import masked_layers


def export_header(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write the masks of a masked model as C arrays (the deliverable of arXiv 2309.06626).

    For each masked layer, in the model's order, with 1 for a computed position:

        /* layer1.0.conv1 */
        #define MASK_LAYER1_0_CONV1_ROWS 56
        #define MASK_LAYER1_0_CONV1_COLS 56
        static const uint8_t mask_layer1_0_conv1[56][56] = {...};

    The header is C99 and C++, has an include guard after its file's name, and is the same byte for
    byte for the same masks. A name is ``mask_`` and the layer's name, with every run of characters
    that C does not allow turned into ``_``; layers that would get one name are told apart by
    ``_2``, ``_3`` and so on. Neither GCC nor Clang warns about arrays left unused.

    Args:
        model: with a Sparsifier attached, frozen or not.
        path: of the header; an existing file is replaced only once the new one is complete.

    Returns:
        The path written.

    Raises:
        ModelError: the model has no masked layer.
        ExportError: the file cannot be written.
    """
    target = Path(path)
    layers = masked_layers(model)
    if not layers:
        raise ModelError("the model has no masked layer; attach a Sparsifier before exporting.")
    text = _header(_guard(target.name), {name: layer.mask for name, layer in layers.items()})
    try:
        with writing(target) as draft:
            draft.write_text(text, encoding="ascii", newline="\n")
    except OSError as error:
        raise ExportError(
            f"cannot write {target}: {error.strerror}; choose a path in a writable folder."
        ) from error
    return target


def _header(guard: str, masks: dict[str, Tensor]) -> str:
    arrays = "\n".join(
        _array(name, identifier, masks[name]) for name, identifier in _identifiers(masks).items()
    )
    return f"""\
/* Masks of the output planes of convolutions: 1 computed, 0 masked. Written by semisparse. */
#ifndef {guard}
#define {guard}

#include <stdint.h>

{arrays}
#endif /* {guard} */
"""


def _array(name: str, identifier: str, mask: Tensor) -> str:
    rows, columns = mask.shape
    macro = identifier.upper()
    # A module's name may hold anything, "*/" too.
    comment = re.sub(r"[^A-Za-z0-9_.-]", "?", name)
    values = ",\n".join(
        f"  {{{', '.join(str(int(value)) for value in row)}}}" for row in mask.cpu().tolist()
    )
    return f"""\
/* {comment} */
#define {macro}_ROWS {rows}
#define {macro}_COLS {columns}
static const uint8_t {identifier}[{rows}][{columns}] = {{
{values}
}};
"""


def _identifiers(names: dict[str, Tensor]) -> dict[str, str]:
    """A C identifier per layer name; no two are equal, in upper case neither."""
    identifiers: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        plain = f"mask_{_words(name)}".rstrip("_")
        identifier, count = plain, 1
        while identifier.upper() in taken:
            count += 1
            identifier = f"{plain}_{count}"
        taken.add(identifier.upper())
        identifiers[name] = identifier
    return identifiers


def _words(name: str) -> str:
    # Runs become one underscore because C++ reserves names with two in a row.
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")


def _guard(file_name: str) -> str:
    # The word in front keeps names that start with a digit valid.
    return f"SEMISPARSE_{_words(file_name).upper()}_"

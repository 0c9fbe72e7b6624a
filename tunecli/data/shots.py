"""Few-shot training data: so many rows of each label, as in Gao et al., 2021 (LM-BFF), section 3.

Which rows is a pure function of the seed and of their content: neither their order nor the rows of other labels
matter, and a larger number holds the rows of a smaller one. Equal rows count once.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np

from tunecli.config.counted import counted
from tunecli.config.errors import UserError
from tunecli.data.mixture import Mixture


def few(examples: Mixture, number: int, seed: int) -> Mixture:
    """`number` rows of each label of each source, with all examples that were made of them.

    Raises:
        UserError: a label has fewer rows.
    """
    of_label: dict[tuple[int, str], set[int]] = defaultdict(set)
    for i, (source, content) in enumerate(zip(examples.sources, examples.contents, strict=True)):
        of_label[int(source), examples[i].labels[0]].add(int(content))
    chosen: dict[int, set[int]] = defaultdict(set)
    for (source, label), contents in of_label.items():
        if len(contents) < number:
            raise UserError(
                f"{counted(len(contents), 'different row')} with the label {label!r}, and {number} are wanted",
                where="data.shots",
                fix=f"data.shots={len(contents)} or less, or more rows",
            )
        chosen[source] |= set(sorted(contents, key=lambda content: _draw(seed, content))[:number])
    kept = [i for i, source in enumerate(examples.sources) if int(examples.contents[i]) in chosen[int(source)]]
    return examples.only(np.array(kept, np.int64))


def _draw(seed: int, content: int) -> bytes:
    return hashlib.blake2b(f"{seed} {content}".encode(), digest_size=16).digest()

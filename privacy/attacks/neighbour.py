"""How near the nearest released text is to each control, in words and in meaning.

Source: Meeus et al., The Canary's Echo: Auditing Privacy Risks of LLM-Generated Synthetic Text (ICML 2025), there with
the mean over the nearest few.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tutelage.configs.records import Example
from tutelage.privacy import similarity
from tutelage.privacy.attacks.base import Controls, Found, Released, Settings
from tutelage.privacy.attacks.membership import judge_texts, merged, whole_text


def attack(released: Released, controls: Controls, settings: Settings) -> Found:
    """Tell members by the released text nearest to them.

    Returns:
        `synthetic.neighbour.*`: word 3-gram Jaccard, which sees copies. `synthetic.neighbour_meaning.*`: cosine of
        sentence embeddings of the first 64 tokens, which sees paraphrases. Missing where nothing was released.
    """
    texts = released.texts

    def in_words(examples: Sequence[Example]) -> np.ndarray:
        return similarity.max_jaccard([whole_text(example) for example in examples], texts)

    def in_meaning(examples: Sequence[Example]) -> np.ndarray:
        embed = settings.embed or similarity.embed
        return similarity.max_cosine(embed([whole_text(example) for example in examples]), embed(texts))

    return merged(
        judge_texts("synthetic.neighbour", controls, in_words if texts else None, settings),
        judge_texts("synthetic.neighbour_meaning", controls, in_meaning if texts else None, settings),
    )

"""Text from a causal language model: sequences of many tasks in one batch that never drains.

transformers' continuous batching keeps the paged cache, splits prompts and packs what runs into one long row of tokens;
what is ours is whose tokens are whose, who is let in, and what is said of each token.
"""

from sparsehub.engine.generation.generator import Generator
from sparsehub.engine.generation.limits import GenerationLimits, GenerationUsage
from sparsehub.engine.generation.request import Completion, Generation, Sampling, TextDelta, TokenLog

__all__ = [
    "Completion",
    "Generation",
    "GenerationLimits",
    "GenerationUsage",
    "Generator",
    "TextDelta",
    "Sampling",
    "TokenLog",
]

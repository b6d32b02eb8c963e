"""Text generation from a causal language model: texts of many tasks in one continuous batch.

transformers' continuous batching keeps the paged cache, splits prompts and packs what runs into one long row of tokens.
Ours are the tasks' changes in that row, the admission of waiting texts, sampling, and decoding while tokens come.
"""

from sparsehub.engine.generation.cache_limits import GenerationLimits, GenerationUsage
from sparsehub.engine.generation.generator import Generator
from sparsehub.engine.generation.request import (
    Completion,
    Generation,
    Sampling,
    TextDelta,
    TokenAlternative,
    TokenLog,
)

__all__ = [
    "Completion",
    "Generation",
    "GenerationLimits",
    "GenerationUsage",
    "Generator",
    "TextDelta",
    "Sampling",
    "TokenAlternative",
    "TokenLog",
]

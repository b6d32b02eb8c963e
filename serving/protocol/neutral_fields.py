"""Fields of OpenAI's, vLLM's, Cohere's and Jina's APIs that this endpoint does not serve, and at which of their values
they ask for nothing. A request model names its table as `neutral`."""

from __future__ import annotations

from collections.abc import Mapping

from serving.protocol.request_model import Values

ANY: Values = None
"""Names, hints to caches: no answer depends on them."""

# every request

_COMMON: Mapping[str, Values] = {
    "user": ANY,
    "request_id": ANY,  # vLLM's; ours is the header X-Request-Id
    "priority": (0,),
    "cache_salt": ANY,  # no cached prefix is ever shared
    "mm_processor_kwargs": ({},),
}

# text generation

GENERATION: Mapping[str, Values] = {
    **_COMMON,
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    # vLLM's
    "top_k": (-1, 0),
    "min_p": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "use_beam_search": (False,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": ANY,  # there are none in a text
    "return_tokens_as_token_ids": (False,),
    "return_token_ids": (False,),
    "prompt_logprobs": (),
    "allowed_token_ids": (),
    "truncate_prompt_tokens": (),
    "structured_outputs": (),
    "logits_processors": (),
}
COMPLETION: Mapping[str, Values] = {
    **GENERATION,
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "add_special_tokens": (True,),
}
CHAT: Mapping[str, Values] = {
    **GENERATION,
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "metadata": ANY,  # labels of stored answers, and none is stored
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": ANY,  # there are no tools
    "prediction": ANY,  # makes OpenAI's answers come sooner, not different
    "prompt_cache_key": ANY,
    "prompt_cache_options": ANY,
    "prompt_cache_retention": ANY,
    "reasoning_effort": ("none", "medium"),  # the two defaults of OpenAI's models
    "response_format": ({"type": "text"},),
    "safety_identifier": ANY,
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
    # vLLM's
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "continue_final_message": (False,),
    "echo": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "include_reasoning": ANY,  # none comes apart from the text
}
MESSAGE: Mapping[str, Values] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "reasoning": ("",),
    "reasoning_content": ("",),
    "refusal": ("",),
    "tool_calls": ([],),
}
STREAM_OPTIONS: Mapping[str, Values] = {
    "include_obfuscation": ANY,  # padding beside the text
    "continuous_usage_stats": (False,),
}

# tasks

TASK: Mapping[str, Values] = {
    **_COMMON,
    "add_special_tokens": (True,),
    "padding": ("do_not_pad",),
    "truncation_side": ("right",),
    "use_activation": (True,),  # probabilities, unit vectors
    "activation": (True,),
    "softmax": (True,),
}
EMBEDDINGS: Mapping[str, Values] = {
    **TASK,
    "normalize": (True,),
    "embed_dtype": ("float32", "float"),
    "endianness": ("native", "little"),
    "embedding_type": ("float",),  # Jina's
    "embedding_types": (["float"],),  # Cohere's
    "late_chunking": (False,),
}
RERANK: Mapping[str, Values] = {
    **TASK,
    "max_tokens_per_doc": (4096,),  # Cohere's default, longer than inputs may be here
    "max_chunks_per_doc": (1, 10),
    "rank_fields": ([], ["text"]),
    "return_embeddings": (False,),
}

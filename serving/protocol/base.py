"""What every body of the API has in common, whatever API it comes from."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ApiModel(BaseModel):
    """The base of every request and response body.

    A field that is not declared is refused in a request, and never sent in a response. The text beneath a field is its
    description in the OpenAPI document. A response field with a default is left out where it does not apply.
    """

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class UsageInfo(ApiModel):
    """Tokens that a request took; what OpenAI's clients read for billing."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

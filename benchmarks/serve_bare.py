"""What the endpoint is compared with: FastAPI under uvicorn around one plain transformers model, and nothing else.

python benchmarks/serve_bare.py CHECKPOINT PORT
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Body(BaseModel):
    """What the endpoint takes, with one model for all."""

    model: str
    input: list[str]


def bare_app(folder: str) -> FastAPI:
    """One request, one forward pass over its texts, one at a time."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()
    tokenizer, turn, app = AutoTokenizer.from_pretrained(folder), threading.Lock(), FastAPI()

    @app.post("/v1/classify")
    def classify(body: Body) -> dict[str, Any]:
        batch = tokenizer(body.input, padding=True, truncation=True, max_length=128, return_tensors="pt")
        with turn, torch.inference_mode():
            scores = torch.softmax(model(**batch).logits, -1).tolist()
        data = [{"label": f"LABEL_{row.index(max(row))}", "probs": row} for row in scores]
        return {"model": body.model, "data": data}

    @app.get("/readyz")
    def readyz() -> str:
        return "ready"

    return app


if __name__ == "__main__":
    uvicorn.run(bare_app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="error")

"""What the endpoint is compared with: FastAPI under uvicorn around a model of transformers', and nothing else.

python -m benchmarks.serving.bare_server CHECKPOINT ADAPTERS PORT

ADAPTERS 0: one plain model; else so many tasks as LoRA adapters of rank 8 with heads of their own in one PEFT model.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

LABELS = 3


class Body(BaseModel):
    """What the endpoint takes. model: `task0`, `task1`, ..., for the plain model anything."""

    model: str
    input: list[str]


def bare_app(folder: str, adapters: int) -> FastAPI:
    """One request, one forward pass over its texts, one at a time."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=LABELS)
    model = adapted(model, adapters).eval() if adapters else model.eval()
    tokenizer, turn, app = AutoTokenizer.from_pretrained(folder), threading.Lock(), FastAPI()

    @app.post("/v1/classify")
    def classify(body: Body) -> dict[str, Any]:
        batch = tokenizer(body.input, padding=True, truncation=True, max_length=128, return_tensors="pt")
        options = {"adapter_names": [body.model] * len(body.input)} if adapters else {}
        with turn, torch.inference_mode():
            scores = torch.softmax(model(**batch, **options).logits, -1).tolist()
        data = [{"label": f"LABEL_{row.index(max(row))}", "probs": row} for row in scores]
        return {"model": body.model, "data": data}

    @app.get("/readyz")
    def readyz() -> str:
        return "ready"

    return app


def adapted(model: Any, adapters: int) -> Any:
    """The model with `task0`, `task1`, ...: adapters on all linear layers of the encoder, a head for each."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["query", "key", "value", "dense"])
    model = get_peft_model(model, config, adapter_name="task0")
    for number in range(1, adapters):
        model.add_adapter(f"task{number}", config)
    return model


if __name__ == "__main__":
    uvicorn.run(bare_app(sys.argv[1], int(sys.argv[2])), host="127.0.0.1", port=int(sys.argv[3]), log_level="error")

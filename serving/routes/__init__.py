"""One file per route, all of one recipe: a body from `serving.protocol`, rows to the engine, answers in an envelope."""

from serving.routes import (
    admin,
    chat,
    classify,
    completions,
    embeddings,
    health,
    home,
    inference,
    models,
    rerank,
    score,
    tasks,
)

ROUTERS = (
    classify.router,
    score.router,
    rerank.router,
    embeddings.router,
    completions.router,
    chat.router,
    models.router,
    tasks.router,
    inference.router,
    health.router,
    home.router,
    admin.router,
)

__all__ = ["ROUTERS"]

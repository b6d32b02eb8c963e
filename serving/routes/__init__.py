"""One file per route, all of one recipe: a body from `serving.wire`, rows to the engine, answers in an envelope."""

from serving.routes import admin, classify, embeddings, health, inference, models, rerank, score

ROUTERS = (
    classify.router,
    score.router,
    rerank.router,
    embeddings.router,
    models.router,
    inference.router,
    health.router,
    admin.router,
)

__all__ = ["ROUTERS"]

"""One file per route, all of one recipe: a body from `serving.wire`, rows to the engine, answers in an envelope."""

from serving.routes import chat, classify, completions, embeddings, health, models, score

ROUTERS = (
    classify.router,
    score.router,
    embeddings.router,
    completions.router,
    chat.router,
    models.router,
    health.router,
)

__all__ = ["ROUTERS"]

"""One file per route, all of one recipe: a body from `serving.wire`, rows to the engine, answers in an envelope."""

from serving.routes import admin, classify, embeddings, health, models, score

ROUTERS = (classify.router, score.router, embeddings.router, models.router, health.router, admin.router)

__all__ = ["ROUTERS"]

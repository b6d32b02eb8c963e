"""The endpoint: a FastAPI app around an engine, packaged and run by BentoML."""

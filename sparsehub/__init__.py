"""sparsehub: many tasks on one pretrained transformer, each a small file of changed weights and a head.

    import sparsehub

    sparsehub.train(sparsehub.TrainConfig(
        backbone="sentence-transformers/all-MiniLM-L6-v2", train="train.jsonl", test="test.jsonl",
        kind="text-classification", name="topic", text="text", label="label", out="packages/topic"))
    hub = sparsehub.open_hub("./hub")
    hub.publish("packages/topic")

    topic = sparsehub.pipeline("topic", hub=hub)      # an ordinary transformers pipeline
    topic("My parcel is late")
    with sparsehub.Engine(sparsehub.load_backbone("sentence-transformers/all-MiniLM-L6-v2")) as engine:
        engine.add(sparsehub.read_package("packages/topic"))
        print(engine.classify("topic", ["My parcel is late"]).results())

Names are imported when they are first used, so `import sparsehub` is fast and needs no torch.
"""

from sparsehub.lazy import lazy_names

__version__ = "0.2.0"

__all__ = [
    "Engine",
    "TrainConfig",
    "__version__",
    "extract",
    "load",
    "load_backbone",
    "open_hub",
    "pipeline",
    "read_package",
    "train",
]
_HOMES = {
    "Engine": "engine",
    "TrainConfig": "training.config",
    "extract": "api.extract",
    "load": "api.load",
    "load_backbone": "backbone",
    "open_hub": "hub",
    "pipeline": "api.load",
    "read_package": "package",
    "train": "training",
}
__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)

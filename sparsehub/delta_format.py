"""The names and sizes that docs/format.md gives to delta.safetensors. Whoever only names them needs no numpy."""

DELTA_FILE = "delta.safetensors"
BLOCK = 65_536
SCALE_GROUP = 256
STORED_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}
VALUE_KINDS = ("add", "set")

"""The console: a page in the browser that asks the endpoint's own routes with the key of whoever looks at it.

It has no rights of its own. Nothing but `mount` needs Gradio, and nothing here Starlette: the command line comes by.
"""

PATH = "/console"
SIGN_IN, SIGN_OUT = f"{PATH}/sign-in", f"{PATH}/sign-out"


def is_console(path: str) -> bool:
    return path == PATH or path.startswith(f"{PATH}/")

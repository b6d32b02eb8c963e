"""The console: a page in the browser that asks the endpoint's own routes with its user's key.

It has no rights of its own: the middleware asks for the key, as on every path.
"""

def render(results):
    pass

"""A page to play with models in a browser (`mgen demo`): all but panel.py, page.py and server.py works without gradio.

models.py      the models of the page, loaded when they are chosen
settings.py    values of the page's controls ⇄ a sampler
controls.py    which controls a model can use, and their ranges
frames.py      a step of the sampler → pictures
runs.py        sampling, editing and comparing, as streams of frames
downloads.py   recipe, PNGs
markup.py      pictures, token grids, tables as HTML; style.py: style sheet and scripts
panel.py       the controls in gradio; page.py: layout and events; server.py: the server
"""

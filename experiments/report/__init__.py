"""One self-contained HTML page about finished studies: `python -m experiments.report runs/`.

`load` reads run folders, `facts` turns them into what the page says, `pictures` draws, `page` puts it together. The
page refers to nothing outside itself: style, script and pictures are inside.
"""

"""Several runs in one picture: metrics against size, compute or steps, and against each other.

readings    which results belong to which tokenizer, and where its weights lie
sizes       what a tokenizer is compared by beside its metrics: parameters, tokens, steps, images, compute
quantities  a number on an axis: one of these sizes, or a metric of a result, with its error
panels      which points of a picture may be compared, which are left out and why, and how far two orders agree
figures     the figures of a paper, and what is drawn where nobody asks for anything
labels      where names of points stand, so that they hide nothing
drawing     a panel as a picture (SVG)
page        the page with all pictures, the files beside it, and the table of numbers
"""

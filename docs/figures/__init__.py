"""The figures of docs/learn.md and every number in it: `python3 -m docs.figures` draws and measures them all.

One figure a file. Each has `draw(material) → (figure, numbers)`; what it shows is computed by the library on the demo
model (tritonq/demo), never by a formula written down twice.
"""

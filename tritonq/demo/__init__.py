"""A small, really trained language model that shows what quantization costs.

Random weights cannot tell a good quantizer from a bad one: every scheme looks the same on noise. This package
therefore ships a byte-level decoder trained on the documentation of Python, and text it has never seen, so that
each scheme can be given a price in bits per byte.

- `model.py`     the decoder, and `load_demo_model()` for the shipped weights
- `text.py`      the shipped texts: held-out (to measure on) and calibration (to choose activation scales)
- `evaluate.py`  bits per byte, and logits on a fixed slice
- `corpus.py`    how training and held-out text are cut apart
- `muon.py`      the optimizer of the matrices
- `train.py`     `python3 -m tritonq.demo.train` makes everything in `data/` again
"""

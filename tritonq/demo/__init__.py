"""A small trained language model that shows what quantization costs.

With random weights, a good quantizer looks like a bad one. So this package ships a byte-level decoder trained on the
documentation of Python, and text that it has never seen. The cost of a scheme is then measured in bits per byte.

- `model.py`     the decoder, and `load_demo_model()` for the shipped weights
- `text.py`      the shipped texts: held-out (to measure on) and calibration (to choose activation scales)
- `evaluate.py`  bits per byte, and logits on a fixed slice
- `corpus.py`    splits training text from held-out text
- `muon.py`      the optimizer for the matrices
- `train.py`     `python3 -m tritonq.demo.train` writes everything in `data/` again
"""

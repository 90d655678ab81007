"""Which modules of a model are meant, how to run it on calibration data, and how one module takes another's place."""

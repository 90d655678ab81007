"""Records a run of a model, and finds the edges along which int8 can go from layer to layer."""

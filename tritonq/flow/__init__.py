"""What a recorded run of a model shows: its calls, and the edges on which int8 can go from layer to layer."""

"""`stream-rpn explain`: the proposal network opened up on one frame: facts → figures, page, table.

Everything is computed by the pipeline's own functions, in PyTorch, on the CPU, in float32. (The
room is not named `explain`, which is the function of `stream_rpn`.)
"""

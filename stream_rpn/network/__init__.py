"""The middle of the pipeline: batches of frames → the model on its device → proposals a frame."""

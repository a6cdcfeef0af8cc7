"""What serves CUDA beyond torch's plain operations: decoding steps recorded once and replayed (`graphs.py`), over pages
that FlexAttention reads in place (`pages.py`), with adapters at fixed addresses (`slots.py`).

Nothing in here is bound to a GPU except the recording itself: elsewhere the same calls run on the same buffers.
"""

"""The proposal stage: from raw head outputs to kept proposals, in PyTorch and in Triton.

Depends on torch, and lazily on triton, only. Shape letters: B frames, L levels, A anchors per cell,
H W of a map, N = A·H·W anchors of a level, K slots kept.
"""

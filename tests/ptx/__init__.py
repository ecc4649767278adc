"""Runs what Triton compiles for a GPU on the CPU, and finds what a GPU would get wrong.

    with launcher.simulated() as launches:
        kernel[grid](...)      # on tensors of the CPU: the real JIT, down to PTX for sm_90

`parse` reads the PTX, `arithmetic`, `warps` and `memory` know its instructions, `execute` runs the
programs of a launch in lockstep, `races` finds accesses that nothing orders, `counts` counts work.
"""

"""A GPU rehearsal: the real mxnet-cu112 over fake CUDA libraries, on a machine without a GPU.

``python -m tools.rehearsal`` (or ``make gpu-rehearsal``) makes an environment of its own in ``.rehearsal``, builds the
libraries of ``fake/`` with gcc, runs whole experiments and what should fail on cards of several sizes and kinds, and
ends with 1 where something is not as it should be.

What it shows: every operator that is used has a kernel for the GPU and takes the types and shapes that it gets; what
MXNet's own allocator takes, at any size; what errors look like, and the sentences that become of them. What it cannot
show: numbers, times, cuDNN's workspace, whether a kernel is right. Kernels do nothing here.
"""

"""What compiled GPU kernels can reach at best: from their machine code and data sheets, no GPU.

Nothing here is a measurement: bounds, and predictions made of them.
"""

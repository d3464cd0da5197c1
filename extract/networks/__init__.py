"""Pretrained networks as Flax modules, with the weights of the usual checkpoints.

Every network is a pure function of its parameters, is compiled by whoever calls it, and
equals its PyTorch reference on the same weights.
"""

"""Doing it: a plan run on torch.distributed, measured, calibrated and compared."""

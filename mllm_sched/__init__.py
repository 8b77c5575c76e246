"""Adaptive scheduling of multimodal encoders on edge devices: a reproduction."""

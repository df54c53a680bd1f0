"""worldline: raw video to metric camera trajectories to a camera-controlled world model."""

__version__ = "0.1.0"

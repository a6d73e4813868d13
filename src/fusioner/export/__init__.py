"""Export of models to ONNX Runtime and OpenVINO, which run without torch."""

import os
from typing import Literal

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # from 1.29 on it reports each use to its vendor by default

Runtime = Literal["auto", "torch", "onnx", "openvino"]
"""Runtime of a model; defined here without heavy imports for the command line."""

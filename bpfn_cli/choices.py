# SPDX-License-Identifier: MIT
"""Choices and a default that several parts share. Nothing is imported, so help does not wait for torch."""

from typing import Literal

PUBLISHED_POINTS = 8192  # of each cloud in the field's tests; the default where a size or a cost is asked for

Strategy = Literal["plain", "self", "online", "meta", "netaug"]
EarlyStop = Literal["never", "hard", "linear", "auto"]
Importance = Literal["taylor", "l1", "first"]
Storage = Literal["float32", "float16", "bfloat16", "int8"]
Optimizer = Literal["adam", "muon"]
ValidationCalendar = Literal["every", "fast"]
Selection = Literal["held_out", "test"]
Selector = Literal["epe3d", "teacher_distance", "nearest"]  # what chooses the best checkpoint, metres
SubsetMethod = Literal["hash", "stride", "stratified"]
Link = Literal["auto", "copy", "hard", "symlink"]
Frame = Literal["internal", "lidar", "nuscenes", "camera", "flyingthings3d"]
Invalid = Literal["zero", "nan"]
SceneStyle = Literal["rooms", "driving"]
Hidden = Literal["kept", "removed", "vanish"]
Region = Literal["radius", "square"]
PartitionName = Literal["motion", "three-way", "category", "speed", "range"]
ExportFormat = Literal["onnx", "torch", "pth", "safetensors"]
Calibration = Literal["minmax", "percentile"]
Quantize = Literal["int8"]

# SPDX-License-Identifier: MIT
"""Scene-flow metrics and the evaluation of a network or a baseline on a dataset."""

from bpfn_cli.metrics.scene_flow import METRIC_NAMES, MeanMetrics, SceneFlowMetrics, scene_flow_metrics

__all__ = ["METRIC_NAMES", "MeanMetrics", "SceneFlowMetrics", "scene_flow_metrics"]

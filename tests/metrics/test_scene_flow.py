# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np
import pytest
import torch

from bpfn_cli.errors import NonFiniteError, ShapeError
from bpfn_cli.metrics import METRIC_NAMES, MeanMetrics, SceneFlowMetrics, scene_flow_metrics
from bpfn_cli.metrics.scene_flow import project
from bpfn_cli.structures import FLYINGTHINGS3D_CAMERA, Camera

# Five points; true flow along x; error along y. Errors, relative errors:
#   0.01 of 1: 0.01;  0.07 of 1: 0.07;  0.2 of 10: 0.02;  0.2 of 1: 0.2;  0.5 of 10: 0.05 (just below, by 1e-4)
TRUE = [1.0, 1.0, 10.0, 1.0, 10.0]
ERROR = [0.01, 0.07, 0.2, 0.2, 0.5]


def by_hand() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    gt, pred = np.zeros((5, 3)), np.zeros((5, 3))
    gt[:, 0] = pred[:, 0] = TRUE
    pred[:, 1] = ERROR
    pc1 = np.zeros((5, 3))
    pc1[:, 2] = 10
    return pred, gt, pc1


def test_metrics_in_3d_by_hand() -> None:
    metrics = scene_flow_metrics(*by_hand())
    assert metrics.epe3d == pytest.approx(0.98 / 5)
    assert metrics.acc3d_strict == pytest.approx(3 / 5)  # 0.01; 0.2 of 10; 0.5 of 10
    assert metrics.acc3d_relax == pytest.approx(4 / 5)  # and 0.07
    assert metrics.outliers3d == pytest.approx(2 / 5)  # 0.2 of 1 by share, 0.5 by metres
    assert metrics.epe2d is None
    assert metrics.acc2d is None


def test_thresholds_are_strict() -> None:
    """0.5 m, 0.125 m ... are exact in binary; the small constant keeps the share below."""
    gt, pred = np.zeros((1, 3)), np.array([[0.0, 0.3, 0.0]])
    metrics = scene_flow_metrics(pred, gt, np.zeros((1, 3)))
    assert (metrics.acc3d_relax, metrics.outliers3d) == (0, 1)
    standing = scene_flow_metrics(gt, gt, gt)
    assert (standing.epe3d, standing.acc3d_strict, standing.acc3d_relax, standing.outliers3d) == (0, 1, 1, 0)


def test_metrics_in_2d_by_hand() -> None:
    # At depth 10 a metre is 105 px. e2 = 1.05, 7.35, 21, 21, 52.5; flow in the image 105, 105, 1050, 105, 1050.
    metrics = scene_flow_metrics(*by_hand(), FLYINGTHINGS3D_CAMERA)
    assert metrics.epe2d == pytest.approx(102.9 / 5)
    # Below 3 px: the first. Below 5 %: 21 of 1050 and 52.5 of 1050 + 1e-5.
    assert metrics.acc2d == pytest.approx(3 / 5)


def test_projection_by_hand_with_a_kitti_like_camera() -> None:
    camera = Camera(focal=-700.0, cx=600.0, cy=170.0, tx=45.0, ty=-0.5, tz=0.005)
    # u = (2 * -700 + 600 * 10 + 45) / 10.005, v = (-1 * -700 + 170 * 10 - 0.5) / 10.005
    pixels = project(np.array([[2.0, -1.0, 10.0]]), camera)
    assert pixels == pytest.approx(np.array([[4645 / 10.005, 2399.5 / 10.005]]))
    assert project(np.array([[0.0, 0.0, 5.0]]), FLYINGTHINGS3D_CAMERA).tolist() == [[479.5, 269.5]]
    assert project(np.array([[1.0, 1.0, 10.0]]), FLYINGTHINGS3D_CAMERA).tolist() == [[374.5, 164.5]]


def test_error_in_the_image_with_depth_offset_by_hand() -> None:
    camera = Camera(focal=-700.0, cx=600.0, cy=170.0, tx=45.0, ty=0.2, tz=0.5)
    pc1, gt = np.array([[0.0, 0.0, 9.0]]), np.array([[0.0, 0.0, 0.5]])
    pred = np.array([[0.1, 0.0, 0.5]])  # true end at Z = 9.5, Z + tz = 10: 0.1 m are 7 px
    metrics = scene_flow_metrics(pred, gt, pc1, camera)
    assert metrics.epe2d == pytest.approx(7.0)
    assert metrics.acc2d == 0.0


def test_mask_leaves_points_out() -> None:
    pred, gt, pc1 = by_hand()
    mask = np.array([True, False, False, True, False])
    metrics = scene_flow_metrics(pred, gt, pc1, FLYINGTHINGS3D_CAMERA, mask)
    assert metrics.epe3d == pytest.approx(0.105)
    assert metrics.acc3d_strict == 0.5
    assert metrics.outliers3d == 0.5
    assert metrics.epe2d == pytest.approx(11.025)
    pred[1] = np.nan  # where nothing counts, nothing is looked at
    assert scene_flow_metrics(pred, gt, pc1, None, mask).epe3d == pytest.approx(0.105)


def test_batch_is_the_mean_over_scenes_not_over_points() -> None:
    pred, gt, pc1 = (np.stack([a, a]) for a in by_hand())
    pred[1] = gt[1] + np.array([0.0, 1.0, 0.0])
    mask = np.ones((2, 5), bool)
    mask[1, 1:] = False
    metrics = scene_flow_metrics(pred, gt, pc1, FLYINGTHINGS3D_CAMERA, mask)
    assert metrics.epe3d == pytest.approx((0.196 + 1.0) / 2)
    assert metrics.epe2d == pytest.approx((20.58 + 105.0) / 2)
    assert metrics.acc3d_strict == pytest.approx(0.3)


def test_tensors_and_arrays_give_the_same() -> None:
    pred, gt, pc1 = by_hand()
    tensors = [torch.from_numpy(a) for a in (pred, gt, pc1)]
    tensors[0].requires_grad_()
    mask = torch.tensor([True, True, False, True, True])
    found = scene_flow_metrics(*tensors, FLYINGTHINGS3D_CAMERA, mask)  # type: ignore[arg-type]
    assert found == scene_flow_metrics(pred, gt, pc1, FLYINGTHINGS3D_CAMERA, mask.numpy())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("which", "name"), [(0, "prediction"), (1, "true flow")])
def test_what_is_not_finite_is_refused_with_its_count(value: float, which: int, name: str) -> None:
    arrays = by_hand()
    arrays[which][1, 2] = value
    arrays[which][3, :] = value
    with pytest.raises(NonFiniteError, match=f"{name} is NaN or infinite at 2 of 5 points"):
        scene_flow_metrics(*arrays)


@pytest.mark.parametrize("shape", [(4, 3), (5, 2), (5,), (1, 5, 3)])
def test_shapes_that_differ_are_refused(shape: tuple[int, ...]) -> None:
    _, gt, pc1 = by_hand()
    with pytest.raises(ShapeError, match="one shape"):
        scene_flow_metrics(np.zeros(shape), gt, pc1)


def test_masks_of_another_shape_or_empty_are_refused() -> None:
    with pytest.raises(ShapeError, match="mask of shape"):
        scene_flow_metrics(*by_hand(), None, np.ones(4, bool))
    with pytest.raises(ShapeError, match="no point"):
        scene_flow_metrics(*by_hand(), None, np.zeros(5, bool))
    with pytest.raises(ShapeError, match="no point"):
        scene_flow_metrics(*(np.zeros((0, 3)) for _ in range(3)))


def test_mean_over_scenes_refuses_none_and_some_cameras() -> None:
    mean = MeanMetrics()
    with pytest.raises(ShapeError, match="no scene"):
        mean.result()
    mean.add(scene_flow_metrics(*by_hand(), FLYINGTHINGS3D_CAMERA))
    assert mean.result() == scene_flow_metrics(*by_hand(), FLYINGTHINGS3D_CAMERA)
    mean.add(scene_flow_metrics(*by_hand()))
    with pytest.raises(ShapeError, match="some scenes have a camera"):
        mean.result()


def test_metrics_are_a_mapping_of_the_six() -> None:
    metrics = SceneFlowMetrics(0.1, 0.2, 0.3, 0.4)
    assert tuple(metrics) == METRIC_NAMES
    assert len(metrics) == 6
    assert dict(metrics)["acc3d_relax"] == 0.3
    assert metrics["epe2d"] is None
    with pytest.raises(KeyError):
        metrics["keys"]

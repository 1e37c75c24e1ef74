# SPDX-License-Identifier: MIT
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cloud_files import POINTS, points_of, refusal, scan, written

from bpfn_cli.data.clouds import read_cloud
from bpfn_cli.data.clouds.text import looks_like_cloud

NAMED = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


@pytest.mark.parametrize(
    "text",
    [
        "1 2 3\n-4 5.5 6.25\n",
        "  1   2 3 \r\n-4\t5.5\t6.25",
        "1,2,3\n-4, 5.5 ,6.25\n",
        "1;2;3\n-4;5.5;6.25\n",
        "1\t2\t3\n-4\t5.5\t6.25\n",
        "# a comment\n\n1 2 3 9 9\n// another\n-4 5.5 6.25 9 9\n\n",
        "1e0 2.0 +3\n-4 5.5 625e-2\n",
    ],
)
def test_numbers_are_read(tmp_path: Path, text: str) -> None:
    assert points_of(written(tmp_path, "a.xyz", text)) == POINTS


@pytest.mark.parametrize(
    "text",
    [
        "x,y,z\n1,2,3\n4,5,6\n",
        ",x,y,z\n0,1,2,3\n1,4,5,6\n",  # as pandas writes it
        "intensity;Z;Y;X\n9;3;2;1\n9;6;5;4\n",
        "id y[m] x[m] z[m]\n7 2 1 3\n8 5 4 6\n",
        'id,"y [m]","x [m]","z [m]"\n7,2,1,3\n8,5,4,6\n',
        "\ufeffX (m), Y (m), Z (m)\n1,2,3\n4,5,6\n",
        "id y [m] x [metres] z ()\n7 2 1 3\n8 5 4 6\n",
        "x [Meter],y [m],z [ m ],intensity [%]\n1,2,3,9\n4,5,6,9\n",
        "# x [m] y [m] z [m]\n1 2 3\n4 5 6\n",
        "#x y z i\n1 2 3 9\n4 5 6 9\n",
        "//X Y Z\n1 2 3\n4 5 6\n",
        "Points:0,Points:1,Points:2\n1,2,3\n4,5,6\n",
        "a,Points_m_XYZ:2,Points_m_XYZ:1,Points_m_XYZ:0\n9,3,2,1\n9,6,5,4\n",
    ],
)
def test_columns_are_taken_by_name(tmp_path: Path, text: str) -> None:
    assert points_of(written(tmp_path, "a.csv", text)) == NAMED


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("# nothing\n", "empty"),
        ("x,y,z\n", "empty"),
        ("1 2\n3 4\n", "shape (2, 2) found"),
        ("1 2 3\n4 5\n", "point 2 is '4 5'; 3 numbers in each line expected"),
        ("1 2 3\n4 5 six\n", "point 2 is '4 5 six'"),
        ("1,5;2,5;3,5\n1,5;2,5;3,5\n", "decimal commas"),
        ("2\nwater\nO 0 0 0\nH 0 0 1\n", "point 2 is 'water'"),  # the chemists' .xyz
        ("a,b,c\n1,2,3\n", "points without x, y and z; they have a, b, c"),
        ("x [mm];y [mm];z [mm]\n1;2;3\n", "coordinates in mm; convert them to metres"),
        ("X (ft),Y (ft),Z (ft)\n1,2,3\n", "coordinates in ft;"),
        ('id,"x [m]","y [m]","z [ cm ]"\n1,1,2,3\n', "coordinates in cm;"),
        ("# x[mm] y[mm] z[mm]\n1 2 3\n", "coordinates in mm;"),
        ("//x [mm] y [mm] z [mm]\n1 2 3\n", "coordinates in mm;"),
        ("# x (deg),y (deg),z (m)\n1,2,3\n", "coordinates in deg;"),
        ("x,y,z,x\n1,2,3,4\n", "two columns of one name"),
        ("x,y,z\n1,2,3,4\n", "3 column names and 4 numbers"),
        ("".join(f"{row},1,2,{row}\n" for row in range(20)), "the first column numbers the rows"),
    ],
)
def test_other_text_is_refused(tmp_path: Path, text: str, words: str) -> None:
    assert words in refusal(written(tmp_path, "a.csv", text))


@pytest.mark.parametrize("text", ["x,y,z\n1,2,3\n4,,6\n,,\n", "1;2;3;\n4; ;6;1\n;;;\n"])
def test_row_with_an_empty_field_is_kept_as_nan(tmp_path: Path, text: str) -> None:
    cloud = read_cloud(written(tmp_path, "a.csv", text))
    assert cloud.valid.tolist() == [True, False, False]
    assert cloud.left_out == {"NaN or infinite": 2}


def test_large_file_keeps_every_row(tmp_path: Path) -> None:
    rows = scan(5000)
    np.savetxt(tmp_path / "a.txt", rows, fmt="%.9g")
    assert np.array_equal(read_cloud(tmp_path / "a.txt").points.astype(np.float32), rows)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 2 3\n", True),
        ("# x\n1,2,3,4\n", True),
        ("x y z\n1 2 3\n", True),
        ("x [mm] y [mm] z [mm]\n1 2 3\n", True),
        ("a.ply b.ply\n", False),
        ("1.ply\n", False),
        ("1 2\n", False),
        ("", False),
        ("x y z\n", False),
    ],
)
def test_clouds_are_told_from_lists(text: str, expected: bool) -> None:
    assert looks_like_cloud(text.encode()) is expected

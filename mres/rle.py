"""COCO's compressed run lengths: read with every byte checked, and averaged over a grid without the mask in between.

Pure numpy on purpose: pycocotools reads past the end of a bad string, so what comes from outside is checked here.

Shapes: K masks of H×W pixels; R runs and N bytes of all masks together; S column segments; h×w the grid;
n cells that a pixel's column can touch.
"""

from collections.abc import Sequence

import numpy as np

_MAX_GROUPS = 7  # 5 bits each; 6 hold every run of the largest image that a record may have


def decode_counts(counts: bytes) -> np.ndarray:
    """The run lengths in COCO's compressed string, int64 (runs,).

    Raises:
        ValueError: for a character outside the alphabet, a string that ends inside a number, a number that is too
            long, or a negative run.
    """
    runs, _ = decode_all([counts])
    return runs


def decode_all(counts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Many masks at once: all runs in a row, int64 (R,), and where each mask's begin, int64 (K + 1,).

    A number is 5-bit groups, the lowest first, in characters from "0"; bit 5 says that more follow, the last group's
    bit 4 is the sign. From the fourth on, a number is the difference to the run before the last.

    Raises:
        ValueError: as `decode_counts`.
    """
    group_N = np.frombuffer(b"".join(counts), np.uint8) - np.uint8(48)
    if group_N.size and group_N.max() > 63:
        wrong = chr((int(group_N[group_N > 63][0]) + 48) % 256)
        raise ValueError(f"character {wrong!r} is outside the RLE alphabet")
    is_last_N = group_N < 32
    end_K = np.cumsum([0, *map(len, counts)])
    if not is_last_N[end_K[1:][np.diff(end_K) > 0] - 1].all():
        raise ValueError("the string ends inside a number")
    first_K1 = np.concatenate([[0], np.cumsum(is_last_N)])[end_K]
    return _undo_differences(_numbers(group_N, is_last_N), first_K1), first_K1


def _numbers(group_N: np.ndarray, is_last_N: np.ndarray) -> np.ndarray:
    last_R = np.flatnonzero(is_last_N)
    if not len(last_R):
        return np.empty(0, np.int64)
    first_R = np.concatenate([[0], last_R[:-1] + 1])
    length_R = last_R - first_R + 1
    if length_R.max() > _MAX_GROUPS:
        raise ValueError(f"a number of more than {_MAX_GROUPS} characters")
    shift_N = 5 * (np.arange(len(group_N)) - np.repeat(first_R, length_R))
    number_R: np.ndarray = np.add.reduceat((group_N & np.uint8(31)).astype(np.int64) << shift_N, first_R)
    is_negative_R = (group_N[last_R] & np.uint8(16)) > 0
    return number_R - (is_negative_R.astype(np.int64) << (5 * length_R))


def _undo_differences(number_R: np.ndarray, first_K1: np.ndarray) -> np.ndarray:
    """Every second number is a chain of differences, so two running sums over all masks, less each mask's start."""
    start_K = first_K1[:-1][np.diff(first_K1) > 0]
    chained_R = number_R.copy()
    chained_R[start_K] = 0  # a mask's first run is in no chain
    sums_R2 = np.zeros(len(number_R) + 2, np.int64)
    np.cumsum(chained_R[0::2], out=sums_R2[2::2])
    np.cumsum(chained_R[1::2], out=sums_R2[3::2])
    start_R = np.repeat(first_K1[:-1], np.diff(first_K1))
    is_odd_R = (np.arange(len(number_R)) - start_R) & 1
    run_R: np.ndarray = sums_R2[2:] - sums_R2[start_R + is_odd_R]
    run_R[start_K] = number_R[start_K]
    if run_R.size and run_R.min() < 0:
        raise ValueError("a run of negative length")
    return run_R


def num_pixels(counts: Sequence[bytes]) -> np.ndarray:
    """How many pixels the runs of each mask cover together, zeros and ones, int64 (K,).

    Raises:
        ValueError: as `decode_counts`.
    """
    return _sums(*decode_all(counts))


def decode_masks(counts: Sequence[bytes], height: int, width: int) -> np.ndarray:
    """Whole masks of one size, uint8 0/1, masks_KHW.

    Raises:
        ValueError: as `decode_counts`, or a mask whose runs do not cover height * width pixels.
    """
    run_R, is_one_R = _checked_runs(counts, height, width)
    masks_KWH = np.repeat(is_one_R.view(np.uint8), run_R).reshape(len(counts), width, height)
    return np.ascontiguousarray(masks_KWH.transpose(0, 2, 1))


def _checked_runs(counts: Sequence[bytes], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The runs of all masks, run_R, and whether they are of ones, is_one_R."""
    run_R, first_K1 = decode_all(counts)
    covered_K = _sums(run_R, first_K1)
    if (wrong_K := covered_K != height * width).any():
        raise ValueError(f"runs that cover {covered_K[wrong_K][0]} pixels, not {height} x {width}")
    index_R = np.arange(len(run_R)) - np.repeat(first_K1[:-1], np.diff(first_K1))
    return run_R, index_R % 2 == 1


def _sums(run_R: np.ndarray, first_K1: np.ndarray) -> np.ndarray:
    return np.diff(np.concatenate([[0], np.cumsum(run_R)])[first_K1])


def coverage(counts: Sequence[bytes], edge_H: np.ndarray, edge_W: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The share of each cell of a grid that each mask covers, exact: uint8 0…255, shares_Khw.

    A mask is column segments, and a segment is a rectangle on the grid. Across, its shares go into the cells one by
    one; downwards, only its two ends are marked, and a running sum fills in between.

    Args:
        counts: compressed run lengths of masks of one size.
        edge_H: where the H + 1 edges between the rows of pixels lie on the grid, ascending within 0 … size[0].
        edge_W: the same of the W + 1 edges between columns, within 0 … size[1]; descending, it mirrors.
        size: rows and columns of the grid.

    Raises:
        ValueError: as `decode_counts`, or a mask whose runs do not cover H·W pixels.
    """
    (h, w), K, W = size, len(counts), len(edge_W) - 1
    column_S, begin_S, end_S = _segments(*_checked_runs(counts, len(edge_H) - 1, W), len(edge_H) - 1)
    left_W, share_nW = _columns(edge_W, w)
    row_H, mark_2H = _marks(edge_H, h)
    mask_S, x_S = np.divmod(column_S, W)
    share_nS, cell_S = share_nW.take(x_S, axis=1), mask_S * w + left_W[x_S]
    cells, values = [], []
    for y_S, sign in ((begin_S, 1), (end_S, -1)):
        for mark_H, into_H in zip(sign * mark_2H, (row_H, row_H + 1), strict=True):
            cells.append(cell_S + into_H[y_S] * (K * w) + np.arange(len(share_nW))[:, None])
            values.append(share_nS * mark_H[y_S])
    sums = np.bincount(np.concatenate(cells, axis=None), np.concatenate(values, axis=None), minlength=(h + 1) * K * w)
    sums_hKw = sums.astype(np.float64, copy=False).reshape(h + 1, K, w)  # of nothing, bincount makes integers
    sums_hKw[0] += 0.5  # so that cutting off below rounds
    for i in range(1, h):
        sums_hKw[i] += sums_hKw[i - 1]
    return np.ascontiguousarray(sums_hKw[:h].astype(np.uint8).transpose(1, 0, 2))


def _segments(run_R: np.ndarray, is_one_R: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Column segments (column, first row, last row + 1) of all masks, as if they stood side by side in one image."""
    is_one_R = is_one_R & (run_R > 0)
    last = np.cumsum(run_R)[is_one_R]
    first = last - run_R[is_one_R]
    column = first // height
    num = (last - 1) // height - column + 1
    column_S = np.repeat(column - np.cumsum(num) + num, num) + np.arange(num.sum())
    top_S = column_S * height
    begin_S = np.maximum(np.repeat(first, num) - top_S, 0)
    return column_S, begin_S, np.minimum(np.repeat(last, num) - top_S, height)


def _columns(edge_W: np.ndarray, num_cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each column of pixels the first cell that it touches, left_W, and its shares of that and the next, share_nW."""
    low_W, high_W = np.minimum(edge_W[1:], edge_W[:-1]), np.maximum(edge_W[1:], edge_W[:-1])
    n = min(int(np.ceil((high_W - low_W).max())) + 1, num_cells)
    left_W = np.minimum(low_W.astype(np.int64), num_cells - n)
    cell_nW = left_W + np.arange(n)[:, None]
    return left_W, np.clip(np.minimum(high_W, cell_nW + 1) - np.maximum(low_W, cell_nW), 0, None)


def _marks(edge_H: np.ndarray, num_cells: int) -> tuple[np.ndarray, np.ndarray]:
    """What a segment that begins at an edge adds, of 255, to the running sum in the edge's cell, row_H, and the next."""
    row_H = np.minimum(edge_H.astype(np.int64), num_cells - 1)
    inside_H = edge_H - row_H
    return row_H, 255 * np.stack([1 - inside_H, inside_H])

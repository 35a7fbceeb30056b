"""Clusters of inputs, and from each as many prototypes as its size entitles it to (paper §4.3)."""

import numpy as np


def choose_prototypes(
    embeddings: np.ndarray, count: int, *, clusters: int, seed: int
) -> np.ndarray:
    """Positions of ``count`` prototypes among the inputs, int64 [count], ascending.

    The inputs are clustered (scikit-learn's MiniBatchKMeans). Each cluster gets prototypes in
    proportion to its size, and they are the inputs nearest its centre.

    Args:
        embeddings: float32 [inputs, D].
        count: in [1, inputs].
        clusters: in [1, inputs].
        seed: of the clustering.
    """
    from sklearn.cluster import MiniBatchKMeans

    clustering = MiniBatchKMeans(clusters, random_state=seed, n_init=3).fit(embeddings)
    distances = np.linalg.norm(embeddings - clustering.cluster_centers_[clustering.labels_], axis=1)
    shares = largest_remainder(np.bincount(clustering.labels_, minlength=clusters), count)
    chosen = []
    for cluster, share in enumerate(shares):
        members = np.flatnonzero(clustering.labels_ == cluster)
        chosen.append(members[np.argsort(distances[members], kind="stable")[:share]])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def largest_remainder(sizes: np.ndarray, count: int) -> np.ndarray:
    """``count`` seats in proportion to ``sizes``, int64 like it: each share is off by less than 1.

    Every size gets its proportional share rounded down; the seats left go to the largest
    remainders, of equal ones to the first. With count ≤ Σ sizes none gets more than its size.
    """
    quotas = sizes * count
    total = int(sizes.sum())
    seats = quotas // total
    left = count - int(seats.sum())
    seats[np.argsort(-(quotas % total), kind="stable")[:left]] += 1
    return seats.astype(np.int64)

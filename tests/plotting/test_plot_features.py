"""Pictures of sparse features show what their table says."""

import numpy as np
import pandas as pd
import pytest

from sea_lens import plotting
from sea_lens.analysis.features import Features
from tests.plotting.conftest import containers, labels, rendered


@pytest.mark.parametrize("fitted", [True, False])
def test_codes_and_frequencies_are_bars_in_the_order_of_the_table(fitted):
    shares = [0.9, 0.1, 0.5] if fitted else [np.nan] * 3
    table = pd.DataFrame(
        {"feature": [7, 3, 11], "side": ["up", "down", "up"], "value": [9.0, -4.0, 2.0]}
        | {"positive": shares, "negative": shares[::-1]}
    )
    axes = rendered(plotting.plot_features(Features(table, "blocks.1.hook_resid_post", "an SAE"), most=2)).axes
    assert len(axes) == (2 if fitted else 1)
    assert labels(axes[0].get_yticklabels()) == ["3", "7"]
    (bars,) = axes[0].containers
    assert [bar.get_width() for bar in bars] == [-4.0, 9.0]
    if fitted:
        drawn = {name: [bar.get_width() for bar in found] for name, found in containers(axes[1]).items()}
        assert drawn == {"positive": [0.1, 0.9], "negative": [0.1, 0.5]}

"""The picture of a view of tokens shows what its tables say."""

import numpy as np
import pytest

import sea_lens as sl
from sea_lens import plotting
from sea_lens.errors import InputError
from tests.plotting.conftest import cells, containers, labels, plots, rendered


@pytest.fixture(scope="module")
def view(llama, editor):
    return sl.view_tokens(llama, "The $ea", editor.at_layers([1]).scaled(2.0), k=3, damage=False)


def test_cells_bars_and_words_are_the_table(view):
    shares, kl, after = plots(rendered(plotting.plot_tokens(view)))
    table = view.table.pivot(index="position", columns="layer", values="share")
    np.testing.assert_array_equal(shares.images[0].get_array(), table.to_numpy())
    assert cells(shares)[(3, 2)] == f"{100 * table.loc[3, 2]:.0f}"
    assert labels(shares.get_yticklabels()) == ["<bos>", "T", "h", "e", "' '", "\\$", "e", "a"]
    assert shares.collections[0].get_offsets()[:, 0].tolist() == [1]
    assert [bar.get_width() for bar in kl.containers[0]] == view.tokens["kl"].tolist()
    rows = view.predictions[view.predictions["position"] == view.n_prompt - 1]
    for side, bars in containers(after).items():
        assert [bar.get_width() for bar in bars] == rows[side].tolist()


def test_another_position_and_the_last_tokens_alone(view):
    shares, _, after = plots(rendered(plotting.plot_tokens(view, position=2, most=3)))
    assert shares.images[0].get_array().shape == (3, 3)
    assert len(after.get_yticklabels()) == (view.predictions["position"] == 2).sum()
    with pytest.raises(InputError, match="position must be 0 to 7"):
        plotting.plot_tokens(view, position=8)

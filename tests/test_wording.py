from sea_lens.cli.flags import word_for
from sea_lens.wording import either, setting, speaking


def test_an_argument_is_called_as_the_surface_calls_it():
    assert (setting("max_kl"), setting("max_kl", None), setting("token", "last")) == (
        "max_kl",
        "max_kl=None",
        "token='last'",
    )
    with speaking(lambda name, value: f"--{name} {word_for(value)}" if name == "seed" else None):
        assert setting("seed", (1, None)) == "--seed 1,none"
        assert setting("other", 2) == "other=2"  # which this command has not
        assert either("python", "command") == "command"
    assert either("python", "command") == "python"

"""Changes to a software profile after the question mark of its name."""

import pytest

from hardware_profiles import load_software
from hardware_profiles.errors import ProfileError


def test_a_change_touches_its_field_and_its_provenance_alone() -> None:
    plain, changed = load_software("eager"), load_software("eager?host_call=5us&flash_version=1")
    assert (changed.host_call_s, changed.flash_version) == (5e-6, 1)
    assert changed.provenance["host_call_s"].source == "given by the user"
    assert changed.provenance["host_call_s"].kind == "assumed"
    assert changed.name == "eager?host_call=5us&flash_version=1"
    assert changed.overlap_gradient_sync == plain.overlap_gradient_sync


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eager?foo=1", "no option 'foo'"),
        ("eager?host_call", "eager?host_call: override 'host_call' has no value"),
        ("eager?host_call=1us&host_call=2us", "given twice"),
        ("eager?host_call=fast", "is 'fast'; expected a number with its unit, as 10us"),
        ("eager?host_call=10", "is '10'; expected a number with its unit, as 10us"),
        ("eager?host_call=1GB", "is '1GB'; expected a number with its unit, as 10us"),
        ("eager?gradient_bucket=25", "is '25'; expected a number with its unit, as 10B"),
        ("eager?flash_version=9", "expected one of 1, 2, 3"),
        ("eager?fuses_elementwise=maybe", "expected true or false"),
        ("eager?straggler_share=2", "straggler_share"),
    ],
)
def test_a_wrong_change_is_told_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ProfileError, match="eager") as told:
        load_software(text)
    assert message in str(told.value)
    assert "\n" not in str(told.value)

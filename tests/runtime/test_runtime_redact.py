"""Secret values are replaced in every spelling."""

import pytest
from bareforge_runtime.redact import Redactor

URL = "postgresql://app:p%40ss%2Fword@db:5432/app"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("s3cr:t/va lue", "s3cr:t/va lue"),
        ("s3cr:t/va lue", "s3cr%3At%2Fva%20lue"),
        ("s3cr:t/va lue", "s3cr%3At/va%20lue"),
        ("s3cr:t/va lue", "s3cr%3At%2Fva+lue"),
        ("tab\tand'quote", repr("tab\tand'quote")[1:-1]),
        ('two\nlines"', r"two\nlines\""),
        (URL, URL),
        (URL, "p%40ss%2Fword"),
        (URL, "p@ss/word"),
    ],
)
def test_spellings(value: str, text: str) -> None:
    assert Redactor([value])(f"<{text}>") == "<***>"


def test_a_secret_within_another_leaves_no_rest() -> None:
    assert Redactor(["abcd", "abcdefgh"])("abcdefgh abcd") == "*** ***"


def test_other_text_stays() -> None:
    text = "user app on db:5432, flag on, 1"
    assert Redactor([URL, "on", "1", ""])(text) == text


def test_shortened_input_of_pydantic_is_removed() -> None:
    text = "Field required [type=missing, input_value={'url': 'postg...d@db/app'}, input_type=dict]"
    assert Redactor()(text) == "Field required [type=missing, input_value=***, input_type=dict]"

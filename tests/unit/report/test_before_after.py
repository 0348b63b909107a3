"""The page of answers before and after is what the code says now."""

from tests import before_after


def test_the_page_of_answers_is_what_the_code_says() -> None:
    """Elsewise: python -m tests.before_after"""
    assert before_after.PAGE.read_text(encoding="utf-8") == before_after.page()

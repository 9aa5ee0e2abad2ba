"""What a prompt says, as people read it."""

import pytest

from spo_verl.data.values.prompt_texts import last_user_message


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ("plain", "plain"),
        (
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]}],
            "<image>what is it?",
        ),
        ([{"role": "assistant", "content": "a"}], ""),
        ([{"content": "no role"}], "no role"),
        (None, ""),
        ([], ""),
    ],
)
def test_the_text_of_a_prompt(messages, text):
    assert last_user_message(messages) == text
